"""Servers side by side: each number against the best other one of the same width."""

from __future__ import annotations

from llmos.bench.compare import compare


def line(
    peer: str, prec: str, workload: str, batch: int | None = None, **numbers: float
) -> dict[str, object]:
    """What a server's run prints."""
    return {"peer": peer, "model": "m", "prec": prec, "workload": workload, "batch": batch, **numbers}


def test_each_number_stands_against_the_best_of_its_width() -> None:
    """Rates against the highest, times against the lowest, medians over rounds; lone widths are out."""
    report = compare(
        [
            line("llmos", "w8a8", "B", 8, decode_tok_s=300.0),
            line("llmos", "w8a8", "B", 8, decode_tok_s=500.0),
            line("llmos", "w8a8", "B", 8, decode_tok_s=400.0),
            line("one", "int8", "B", 8, decode_tok_s=100.0),
            line("other", "q8_0", "B", 8, decode_tok_s=200.0),
            line("other", "q4_0", "B", 8, decode_tok_s=900.0),
            line("other", "made-up", "B", 8, decode_tok_s=999.0),
            line("llmos", "w8a8", "C", 16, output_tok_s=50.0, ttft_p99_s=4.0),
            line("one", "int8", "C", 16, output_tok_s=100.0, ttft_p99_s=8.0),
            line("other", "w8a8", "C", 16, output_tok_s=80.0, ttft_p99_s=2.0),
            line("llmos", "bf16", "A", prefill_tok_s=1.0),
        ]
    )
    rows = [(row.case, row.metric, row.value, row.against, row.ratio, row.runs) for row in report.rows]
    assert rows == [
        ("m, 8 bits: decode, batch 8", "decode", 400.0, "other q8_0: 200", 2.0, 3),
        ("m, 8 bits: served, 64 requests, 16 together", "output", 50.0, "one int8: 100", 0.5, 1),
        ("m, 8 bits: served, 64 requests, 16 together", "P99 TTFT", 4.0, "other w8a8: 2", 0.5, 1),
    ]
