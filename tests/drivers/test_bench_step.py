"""Steps are measured: every combination once, time that adds up, and the model that was asked for."""

from __future__ import annotations

import msgspec
import pytest

from drivers.bench import step
from drivers.bench.random_model import random_native_model


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("weights", ["bf16", "w4a8"])
def test_measurement(weights: str, num_threads: int) -> None:
    """Fractions follow from time and bandwidth; every kind of phase that the step has took some time."""
    model = random_native_model("stories260k", weights, "int8", num_threads, 64)
    case = step.StepCase(model, 9, 2, 20)
    row = step.measure_step(case, "stories260k", 1)
    assert (row.num_rows, row.tokens_per_row, row.context, row.num_threads) == (9, 2, 20, num_threads)
    limit = row.size_bytes / row.read_bytes_per_second + step.LAYER_SECONDS * model.config.num_layers
    assert row.limit_ratio == pytest.approx(row.microseconds * 1e-6 / limit)
    assert row.roof_fraction >= row.size_bytes / row.read_bytes_per_second / (row.microseconds * 1e-6) * 0.999
    # Greedy rows, no embeddings; no int8.
    idle = {"sample", "hidden"} | ({"prepare_output", "prepare_down"} if weights == "bf16" else set())
    assert {name for name, time in row.phases.items() if time <= 0} == idle


def test_bytes_and_operations_of_a_step() -> None:
    """A step reads all weights once and the keys and values of every row; two operations for each weight."""
    model = random_native_model("base", "w8a8", "fp16", 1, 64)
    case = step.StepCase(model, 3, 1, 9)
    layer = 256 * 512 + 256 * 256 + 3 * 256 * 704
    num_weights = 4 * layer + 2560 * 256
    assert case.operations == 2 * 3 * num_weights
    assert case.size_bytes == num_weights + 3 * 10 * 2 * 4 * 2 * 64 * 2


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a line for every model, format, thread count and row count."""
    arguments = ["--shapes", "stories260k", "draft", "--weights", "bf16", "w8a8", "--kv", "fp32"]
    assert step.main([*arguments, "--rows", "1", "3", "--context", "0", "--threads", "1", "--runs", "1"]) == 0
    rows = [
        msgspec.json.decode(line, type=step.StepMeasurement) for line in capsys.readouterr().out.splitlines()
    ]
    assert [(row.shape, row.weights, row.num_rows) for row in rows] == [
        (shape, weights, num_rows)
        for shape in ("stories260k", "draft")
        for weights in ("bf16", "w8a8")
        for num_rows in (1, 3)
    ]
