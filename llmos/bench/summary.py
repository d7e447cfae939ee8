"""The first screen of docs/benchmarks.md: what llmos is fast and slow at, in rows of the tables below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from llmos.bench.report import BenchRow

EVEN = 0.05  # a ratio that is so near to 1 is no difference


@attrs.frozen
class Pick:
    """A row to be shown, by its bench, the end of its case, its metric and the beginning of `against`."""

    question: str
    bench: str
    case: str
    metric: str
    against: str = ""

    def finds(self, row: BenchRow) -> bool:
        """Is it this row?"""
        return (
            row.bench == self.bench
            and row.case.endswith(self.case)
            and row.metric == self.metric
            and row.against.startswith(self.against)
        )


SERVED = "served, 64 requests, 16 together"
KNEE = "cpu, llmos-base bf16 kv bf16, knee at 80 turns/s: auto"
LATE = "P99 late, gateway, by the system's clock"
ADDS = "P99 of what the gateway adds to a token"
STREAMS = "a step of 50 ms, beside nobody"
FLOOD = "cpu: flood of 64, four of 2 req/s"
WAITING = "steps that wait for a map, ahead"
SLOTS = "slots of 1024 KiB, runs of 16, with checksums"
FIRST = "P99 TTFT of light tenants"
ADDED = "added to a token"
SMALL, LARGE = "2,560: JSON schema, batch 32", "128,256: JSON schema, batch 32"
PICKS = (
    Pick("Llama 1b, 8 bits, prompt of 512", "peers", "llama-1b, 8 bits: prefill 512", "prefill"),
    Pick("Llama 1b, 8 bits, decode, batch 1", "peers", "llama-1b, 8 bits: decode, batch 1", "decode"),
    Pick("Llama 1b, 8 bits, decode, batch 32", "peers", "llama-1b, 8 bits: decode, batch 32", "decode"),
    Pick("Llama 1b, 8 bits, 64 requests, 16 at once", "peers", f"llama-1b, 8 bits: {SERVED}", "output"),
    Pick("their P99 TTFT", "peers", f"llama-1b, 8 bits: {SERVED}", "P99 TTFT"),
    Pick("Llama 1b, 4 bits, decode, batch 1", "peers", "llama-1b, 4 bits: decode, batch 1", "decode"),
    Pick("Llama 160m, 8 bits, 64 requests, 16 at once", "peers", f"llama-160m, 8 bits: {SERVED}", "output"),
    Pick("their P99 TTFT", "peers", f"llama-160m, 8 bits: {SERVED}", "P99 TTFT"),
    Pick("3.6m, 8 bits, decode, batch 1", "peers", "llmos-base, 8 bits: decode, batch 1", "decode"),
    Pick("3.6m, 8 bits, 64 requests, 16 at once", "peers", f"llmos-base, 8 bits: {SERVED}", "output"),
    Pick("their P99 TTFT", "peers", f"llmos-base, 8 bits: {SERVED}", "P99 TTFT"),
    Pick("kernel's work for a step of 256", "kernel", "without latency", "bookkeeping per step"),
    Pick("P99 of what the gateway adds to a token, 256 streams", "gateway", STREAMS, ADDS),
    Pick("P99 lateness of a token in all, by client's socket", "gateway", STREAMS, LATE),
    Pick("the same on a busy machine, `realtime`", "gateway", "programs want: real time", LATE),
    Pick("fair shares, throughput", "fair", "cpu: overload, 64 and 128 outstanding", "throughput"),
    Pick("fair shares, P99 TTFT of a light tenant beside a flood", "fair", FLOOD, FIRST, "fcfs"),
    Pick("the same, beside its TTFT alone", "fair", FLOOD, FIRST, "alone"),
    Pick("switch of a process at 1,024 tokens", "switch", "context: 1024 tokens", "swap", "recompute"),
    Pick("P99 TTFT of conversations in too little memory", "switch", KNEE, "P99 TTFT", "sync block swap"),
    Pick("the same", "switch", KNEE, "P99 TTFT", "recompute"),
    Pick("steps that wait for a map", "map", "16 rows decode: memory never used", WAITING),
    Pick("a JSON schema adds to a token, batch 32, 2,560 tokens", "grammar", SMALL, ADDED),
    Pick("the same, 128,256 tokens", "grammar", LARGE, ADDED),
    Pick("copies to a swap file, with checksums", "transfer", f"to disk: {SLOTS}", "bandwidth"),
)  # fmt: skip


def summarise(rows: Iterable[BenchRow]) -> Iterator[str]:
    """Lines of the table. A pick for which there is no row is left out: it was not measured."""
    rows = list(rows)
    found = [(pick, row) for pick in PICKS if (row := next(filter(pick.finds, rows), None)) is not None]
    if not found:
        return
    yield "## In short\n"
    machines = " and ".join(dict.fromkeys(row.machine for _, row in found))
    yield f"{machines}, no GPU. Llama and 3.6m are held against the best of the other engines in that case.\n"
    yield "| | llmos | against | ratio | |"
    yield "| --- | ---: | --- | ---: | --- |"
    for pick, row in found:
        word = "**worse**" if row.ratio < 1 - EVEN else "even" if row.ratio < 1 + EVEN else "better"
        yield f"| {pick.question} | {row.value:,.4g} {row.unit} | {row.against} | {row.ratio:.2f} | {word} |"
    yield ""
