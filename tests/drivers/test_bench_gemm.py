"""The measurements measure: every combination once, peaks above zero, weights that do not share memory."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.bench import gemm
from native.pack import WeightFormat


@pytest.mark.parametrize("weight_format", [WeightFormat.FP32, WeightFormat.W4A8], ids=["fp32", "w4a8"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_measurement(weight_format: WeightFormat, num_threads: int) -> None:
    """A measurement says what was measured, and its fractions follow from its peaks and its time."""
    copies = gemm.WeightCopies(weight_format, 192, 128, 1 << 20)
    row = gemm.measure_gemm(copies, 3, num_threads, 1, np.ones(1 << 20, dtype=np.uint8))
    assert (row.num_rows, row.num_outputs, row.num_inputs, row.num_threads) == (3, 192, 128, num_threads)
    operations = 2 * 3 * 192 * 128 / (row.microseconds * 1e-6)
    assert row.arithmetic_fraction == pytest.approx(operations / row.operations_per_second)
    bandwidth = copies.size_bytes / (row.microseconds * 1e-6)
    assert row.bandwidth_fraction == pytest.approx(bandwidth / row.read_bytes_per_second)
    assert row.roof_fraction == max(row.arithmetic_fraction, row.bandwidth_fraction)


def test_copies_fill_memory() -> None:
    """Copies have their own memory, as much as was asked for, and the same weights."""
    copies = gemm.WeightCopies(WeightFormat.W8A8, 64, 64, 50_000)
    assert len(copies.weights) == 50_000 // (64 * 64)
    assert len({weight.data.ctypes.data for weight in copies.weights}) == len(copies.weights)
    assert all(np.array_equal(weight.data, copies.weights[0].data) for weight in copies.weights)


def test_threads_beyond_tiles() -> None:
    """A weight of one tile is measured on two threads too: one of them has nothing to do."""
    assert gemm.WeightCopies(WeightFormat.FP32, 64, 8, 1).seconds(2, 2) > 0


def test_json_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints a line for every format, thread count and row count."""
    monkeypatch.setattr(gemm, "OUTPUTS", 64)
    monkeypatch.setattr(gemm, "INPUTS", 64)
    monkeypatch.setattr(gemm, "STREAM_BYTES", 1 << 20)
    arguments = ["--formats", "bf16", "w8a8", "--rows", "1", "5", "--threads", "1", "--runs", "1"]
    assert gemm.main(arguments) == 0
    rows = [
        gemm.msgspec.json.decode(line, type=gemm.GemmMeasurement)
        for line in capsys.readouterr().out.splitlines()
    ]
    assert [(row.weight_format, row.num_rows) for row in rows] == [
        ("BF16", 1), ("BF16", 5), ("W8A8", 1), ("W8A8", 5),
    ]  # fmt: skip
