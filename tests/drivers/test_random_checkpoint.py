"""Random checkpoints load like any other, and have the shape that was asked for."""

from __future__ import annotations

from pathlib import Path

from drivers.bench.random_checkpoint import write_checkpoint
from drivers.bench.random_model import SHAPES
from drivers.cpu import CpuDriver
from llmos.device import Load


def test_a_random_checkpoint_loads(tmp_path: Path) -> None:
    """Two layers, 512 tokens: every tensor is found, and has its shape."""
    write_checkpoint("tiny", tmp_path)
    load = Load(str(tmp_path), "tiny", "fp16", "fp16", 1 << 20, None, 2, None, 16)
    model, _ = CpuDriver(1).load_model(load, lambda done, total, what: None)
    assert model.info.vocab_size == SHAPES["tiny"].vocab_size
    assert model.info.max_model_len == SHAPES["tiny"].max_positions
