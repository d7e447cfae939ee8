"""The measurements measure: layers with their own keys, shares of all the work, fractions that follow."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from native._cpu import ffi

from drivers.bench import attention
from llmos.device import DEFAULT_PAGE_TOKENS
from native.attention import attend, make_spans, num_items

SHAPE = (4, 2, 16)


@pytest.mark.parametrize("kv_format", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_measurement(kv_format: attention.Format, num_threads: int) -> None:
    """A measurement says what was measured, and its fractions follow from its peaks and its time."""
    case = attention.Case("two", 62, 2)
    cache = attention.CacheLayers(kv_format, SHAPE, case.num_positions, 1 << 16)
    row = attention.measure_attention(cache, case, num_threads, 1, np.ones(1 << 20, dtype=np.uint8))
    assert (row.case, row.kv_format, row.num_threads) == ("two", kv_format, num_threads)
    assert (row.num_heads, row.num_kv_heads, row.head_dim) == SHAPE
    operations = 4 * (63 + 64) * 4 * 16 / (row.microseconds * 1e-6)
    assert row.arithmetic_fraction == pytest.approx(operations / row.operations_per_second)
    item_bytes = {"fp32": 64, "fp16": 32, "bf16": 32, "int8": 20}[kv_format]  # of a head, with its scale
    bandwidth = 2 * 64 * 2 * item_bytes / (row.microseconds * 1e-6)
    assert row.bandwidth_fraction == pytest.approx(bandwidth / row.read_bytes_per_second)
    assert row.roof_fraction == max(row.arithmetic_fraction, row.bandwidth_fraction)


def test_layers_fill_memory_with_numbers() -> None:
    """Layers have keys of their own, as many as were asked for, and attention over any of them is finite."""
    num_tokens = DEFAULT_PAGE_TOKENS
    cache = attention.CacheLayers("fp16", SHAPE, num_tokens, 200_000)
    assert len(cache.layers) == 200_000 // (2 * num_tokens * 2 * 16 * 2)
    assert len({int(ffi.cast("uintptr_t", kv.keys)) for kv in cache.layers}) == len(cache.layers)
    q, results = np.ones((1, 64), dtype=np.float32), []
    for kv in cache.layers:
        out = np.empty((1, 64), dtype=np.float32)
        attend(kv, make_spans([(num_tokens - 1, 1, 0, 0)]), cache.pages, q, out)
        assert np.isfinite(out).all()
        results.append(out.tobytes())
    assert len(set(results)) == len(results)


@pytest.mark.parametrize(("context", "num_tokens"), [(63, 1), (0, 300), (40, 257)])
@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_threads_share_all_items(context: int, num_tokens: int, num_threads: int) -> None:
    """Cuts rise from no item to all of them, and with few threads every thread has some."""
    case = attention.Case("any", context, num_tokens)
    cache = attention.CacheLayers("fp32", SHAPE, case.num_positions, 1)
    total = num_items(cache.layers[0], make_spans([(context, num_tokens, 0, 0)]))
    cuts = cache.cut_items(case, num_threads, total)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, total, num_threads + 1)
    assert all(a <= b for a, b in itertools.pairwise(cuts))
    if num_threads <= 2:
        assert all(a < b for a, b in itertools.pairwise(cuts))


def test_pairs_are_counted() -> None:
    """Every token sees what is before it and itself."""
    assert attention.Case("any", 5, 3).num_pairs == 6 + 7 + 8


def test_json_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints a line for every case, shape, format and thread count."""
    monkeypatch.setattr(attention, "STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(attention, "CASES", {"tiny": attention.Case("tiny", 3, 2)})
    monkeypatch.setattr(attention, "SHAPES", {"4/2/16": SHAPE})
    assert attention.main(["--formats", "bf16", "int8", "--threads", "1", "2", "--runs", "1"]) == 0
    rows = [
        attention.msgspec.json.decode(line, type=attention.AttentionMeasurement)
        for line in capsys.readouterr().out.splitlines()
    ]
    assert [(row.case, row.kv_format, row.num_threads) for row in rows] == [
        ("tiny", "bf16", 1), ("tiny", "bf16", 2), ("tiny", "int8", 1), ("tiny", "int8", 2),
    ]  # fmt: skip
