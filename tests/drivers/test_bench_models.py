"""The parts of the CPU benchmark count what they say they count."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from attrs import evolve

from drivers.bench import models, random_model
from drivers.bench.models import DrivenModel, measure_decode, measure_prefill, measure_sampling
from drivers.bench.peaks import Peaks, make_stream
from drivers.bench.random_model import SHAPES, random_weights
from drivers.bench.roof import RoofMeasurement
from drivers.bench.rows import Latest, against_roof
from drivers.bench.torch_baseline import TorchAttention, TorchProduct
from llmos.device import Sampling
from native.pack import WeightFormat

STREAM = make_stream(1 << 20)
TINY = SHAPES["tiny"]
LAYER_WEIGHTS = 128 * (3 * 128 + 128 + 2 * 256 + 256)
HEAD_WEIGHTS = 512 * 128


@pytest.fixture(scope="module")
def tiny() -> Iterator[DrivenModel]:
    """The tiny shape in w8a8 on two threads."""
    model = DrivenModel("tiny", "w8a8", 2)
    yield model
    model.close()


@pytest.mark.parametrize("weights", ["fp32", "fp16", "bf16", "w8a8", "w4a8"])
def test_random_weights_have_the_shape(weights: str) -> None:
    """Weights are finite and vary, no two layers share memory, and a step reads as many bytes as they are."""
    packed = random_weights(TINY, weights)
    first, second = packed.layers
    assert first.qkv.data.ctypes.data != second.qkv.data.ctypes.data
    unpacked = packed.head.unpack()
    assert unpacked.shape == (512, 128)
    assert np.isfinite(unpacked).all()
    assert unpacked.std() == pytest.approx(1 / np.sqrt(128), rel=0.1)
    num_weights = 2 * LAYER_WEIGHTS + HEAD_WEIGHTS
    bits = {"fp32": 32, "fp16": 16, "bf16": 16, "w8a8": 8, "w4a8": 4}[weights]
    assert packed.step_bytes == pytest.approx(num_weights * bits / 8, rel=0.05)


def test_rows_repeat_where_the_sample_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of more rows than are drawn is the drawn ones again."""
    monkeypatch.setattr(random_model, "SAMPLE_WEIGHTS", 512 * 128)
    wide = random_weights(evolve(TINY, vocab_size=1280), "w8a8").head.unpack()
    assert np.array_equal(wide[512:1024], wide[:512])
    assert np.array_equal(wide[1024:], wide[:256])


def test_least_time_counts_weights_keys_and_products(tiny: DrivenModel) -> None:
    """What a step must read and multiply is counted from the shape."""
    tiny.open_spaces(3)
    tiny.prefill(5)
    reading, computing = tiny.least_seconds(5, Peaks(1.0, 1.0))
    assert computing == 2 * 3 * (5 * 2 * LAYER_WEIGHTS + HEAD_WEIGHTS)
    kv_bytes = 3 * 5 * 2 * 2 * 128 * 2  # spaces, tokens, layers, K and V, width, fp16
    assert reading == tiny._weight_bytes + kv_bytes
    tiny.decode()
    later, computing = tiny.least_seconds(1, Peaks(1.0, 1.0))
    assert later - reading == kv_bytes / 5
    assert computing == 2 * 3 * (2 * LAYER_WEIGHTS + HEAD_WEIGHTS)


def test_models_are_measured_in_both_ways(tiny: DrivenModel) -> None:
    """Decoding and prefill give positive rates, and the roof is whichever limit is nearer."""
    for found in (measure_decode(tiny, 4, 8, 3, STREAM), measure_prefill(tiny, 16, 2, STREAM)):
        assert found.tokens_per_second > 0
        assert found.roof_fraction > 0
    one = measure_prefill(tiny, 16, 1, STREAM)
    assert one.roof_fraction == max(one.bandwidth_fraction, one.arithmetic_fraction)


def test_sampling_is_measured_beside_greedy(tiny: DrivenModel) -> None:
    """Both kinds of step take time, and sampled tokens are not all the greedy ones."""
    sampling = Sampling(temperature=2.0, seed=3)
    assert min(measure_sampling(tiny, 2, sampling, 1)) > 0
    tokens = []
    for chosen in (sampling, None):
        tiny.open_spaces(8, chosen)
        tiny.prefill(3)
        tokens.append(tuple(tiny.sampled))
    assert tokens[0] != tokens[1]


def test_contexts_stay_within_the_model(tiny: DrivenModel) -> None:
    """So many runs that a context would not fit are refused."""
    with pytest.raises(ValueError, match="1024"):
        measure_decode(tiny, 1, 8, models.MAX_MODEL_LEN, STREAM)


def test_a_step_that_fails_is_not_timed(tiny: DrivenModel) -> None:
    """A fault in a row is an error, not a fast step."""
    tiny.open_spaces(1)
    with pytest.raises(RuntimeError, match="no sampled token"):
        tiny.decode()


@pytest.mark.parametrize("weight_format", [WeightFormat.FP32, WeightFormat.W8A8], ids=["fp32", "w8a8"])
def test_torch_multiplies_the_same_numbers(weight_format: WeightFormat) -> None:
    """Torch's product has the shape and the sums of the same product in NumPy."""
    product = TorchProduct(weight_format, 96, 64, 30_000)
    assert product.seconds(40, 1) > 0
    x, weight = product._random(40), product._weights[0]
    expected = x.numpy().astype(np.int64) @ weight.numpy().astype(np.int64)
    assert np.array_equal(product._multiply(x, weight).numpy(), expected)


def test_torch_attends_to_as_much() -> None:
    """Torch's attention runs over layers that fill the memory asked for, alone and for a whole prompt."""
    torch_attention = TorchAttention((4, 2, 16), 24, 30_000)
    assert len(torch_attention._layers) == 30_000 // (2 * 4 * 2 * 24 * 16)
    assert torch_attention.seconds(1, 1) > 0
    assert torch_attention.seconds(24, 2) > 0


def test_the_limit_is_named() -> None:
    """A row says which peak it is held against, and how high that was."""
    base = RoofMeasurement(
        bandwidth_fraction=0.5, arithmetic_fraction=0.25, roof_fraction=0.5,
        read_bytes_per_second=30e9, operations_per_second=700e9, repetitions=7,
    )  # fmt: skip
    row = against_roof("a case", "throughput", 9.0, "tokens/s", base, is_integer=True)
    assert (row.against, row.ratio, row.runs) == ("read 30.0 GB/s", 0.5, 7)
    base = msgspec.structs.replace(base, arithmetic_fraction=0.75, roof_fraction=0.75)
    assert against_roof("c", "m", 9.0, "u", base, is_integer=True).against == "int8 700 GOP/s"
    assert against_roof("c", "m", 9.0, "u", base, is_integer=False).against == "fp32 700 GOP/s"


def test_latest_lets_go_first() -> None:
    """What was made last is kept, and is gone before another is made."""
    alive: list[int] = []

    def make(number: int) -> int:
        assert not alive
        alive.append(number)
        return number

    latest = Latest(make, alive.remove)
    assert [latest(1), latest(1), latest(2), latest(1)] == [1, 1, 2, 1]
    assert alive == [1]
