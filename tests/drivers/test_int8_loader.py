"""W8A8 on `Ops`: from a checkpoint, with the integers that the processor multiplies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_zoo import Memory, load_native, load_request, save_checkpoint

from drivers.cuda import CudaDriver
from drivers.engine import Engine
from drivers.model.errors import ModelError
from drivers.model.int8_loader import load_int8, unpack_weights
from drivers.model.loader import load_reference, open_model
from drivers.ops.int8 import Int4Weight, Int8Weight
from drivers.ops.reference import ReferenceOps
from llmos.device import Bind, Loaded, Map, Release, Reserve, Row, Sampling, Step
from native.cuda.device import LIBRARY_VARIABLE
from tests.fake_cuda import load_fake

CPU = torch.device("cpu")
PROMPT = tuple(range(3, 40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with norms of heads."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, "Qwen3ForCausalLM", num_hidden_layers=2)
    return folder


def load(checkpoint: Path, kv: str, weights: str = "w8a8"):
    """The model on torch's operations."""
    request = load_request(checkpoint, weights, kv)
    return load_int8(open_model(checkpoint), request, CPU, 1, lambda *report: None, ReferenceOps())


@pytest.mark.parametrize(("weights", "kv"), [("w8a8", "fp32"), ("w8a8", "int8"), ("w4a8", "fp32")])
def test_logits_are_near_the_processors(checkpoint: Path, weights: str, kv: str) -> None:
    """The same integers, and the same rule for activations: what differs are last bits, and halves."""
    model, native = load(checkpoint, kv, weights), load_native(checkpoint, weights)
    assert (model.info.dtype, model.info.kv) == (weights, kv)
    wanted = Memory(native).run(Row(0, 0, PROMPT, True, PROMPT))
    got = Memory(model, seed=None).run(Row(0, 0, PROMPT, True, PROMPT))
    spread = float(wanted.std())
    assert (got - wanted).abs().mean() < 0.03 * spread
    published = load_reference(open_model(checkpoint), load_request(checkpoint), CPU)
    exact = Memory(published).run(Row(0, 0, PROMPT, True, PROMPT))
    assert (got - exact).abs().mean() < (0.06 if weights == "w8a8" else 0.5) * spread


@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
def test_integers_are_those_that_are_packed(checkpoint: Path, kind: type) -> None:
    """Of each product; the embedding and biases are the published ones."""
    native = load_native(checkpoint, "w8a8" if kind is Int8Weight else "w4a8")
    packed = native._weights
    weights = unpack_weights(packed, torch.float32, CPU)
    for layer, wanted in zip(weights.layers, packed.layers, strict=True):
        for name in ("qkv", "output", "gate_up", "down"):
            ours, theirs = getattr(layer, name), getattr(wanted, name)
            assert isinstance(ours, kind)
            np.testing.assert_array_equal(ours.values.numpy(), theirs.unpack_int8())
            np.testing.assert_array_equal(ours.scale.numpy(), theirs.scale)
    np.testing.assert_array_equal(weights.embedding.numpy(), packed.embedding)
    assert weights.layers[0].q_norm is not None


def test_formats_that_are_not_served_are_refused(checkpoint: Path) -> None:
    """The error names the format, and those that are served."""
    with pytest.raises(
        ModelError, match="kv 'bf16' is not supported here beside fp32 activations; supported: "
    ):
        load(checkpoint, "bf16")


@pytest.mark.parametrize("weights", ["w8a8", "w4a8"])
def test_a_gpu_takes_integers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    """On the stand-in: a prompt in one chunk and in two gives one token; pages hold 8 bits and scales."""
    monkeypatch.setenv(LIBRARY_VARIABLE, load_fake().library)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    driver = CudaDriver()
    engine = Engine(driver, debug=True)
    try:
        loaded = engine.load(load_request(checkpoint, weights, "int8"), lambda *report: None)
        assert isinstance(loaded, Loaded), loaded
        assert loaded.model.dtype == weights
        assert loaded.kv.name == "int8"
        assert loaded.kv.segments[0].bytes_per_token == 2 * 2 * (32 + 4)
        frames = tuple(range(loaded.kv.frames_per_page))
        tokens = []
        for cuts in ((len(PROMPT),), (20, len(PROMPT))):
            engine.run_step(Step(0, (Reserve(0), Bind(0, Sampling(), (), 0), Map(0, 0, frames)), ()))
            start = 0
            for cut in cuts:
                done = engine.run_step(Step(1, (), (Row(0, start, PROMPT[start:cut], cut == len(PROMPT)),)))
                assert not done.faults
                start = cut
            tokens.append(done.tokens)
            engine.run_step(Step(2, (Release(0),), ()))
        assert tokens[0] == tokens[1]
    finally:
        engine.close()
        driver.close()
