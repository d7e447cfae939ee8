"""What is left of a model that was stored in blocks and is then served in a format of ours.

python docs/experiments/gguf_formats.py FOLDER [FILE.gguf …]

For the folder, and for each file of its weights in some format: nanoseconds of one thread to read and decode
a value, and the KL divergence in nats a token, on the text that comes along, from the folder as published.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from drivers.model.loader import open_model
from drivers.model.native_loader import load_native
from drivers.model.native_transformer import NativeTransformer
from drivers.model.quality import SAMPLE_TEXT, measure_quality, read_tokens
from drivers.model.source import open_source
from llmos.device import Load

WEIGHTS = ("fp32", "bf16", "w8a8", "w4a8")


def load(path: Path, weights: str) -> NativeTransformer:
    """A model with keys and values in the format that goes with its weights."""
    opened = open_model(path)
    request = Load(
        path=str(path), name="x", weights=weights, kv="auto", pool_bytes=None, frame_bytes=None, max_spaces=1,
        max_model_len=None, max_step_tokens=64,
    )  # fmt: skip
    return load_native(opened, request, 1, lambda done, total, what: None)[0]


def time_reading(path: Path) -> float:
    """Nanoseconds of one thread for each value of a model, without packing."""
    _, source = open_source(path)
    began, num_values = time.thread_time_ns(), 0
    for name in source.tensors:
        num_values += source.read(name).numel()
    return (time.thread_time_ns() - began) / num_values


def main() -> None:
    """Print a table: a row for each source, a column for each format that it is served in."""
    folder, *files = map(Path, sys.argv[1:])
    opened = open_model(folder)
    tokens, _ = read_tokens(SAMPLE_TEXT, folder, opened.config.vocab_size, opened.max_model_len)
    published = load(folder, opened.config.dtype)
    torch.set_num_threads(1)
    print(f"{'source':30} ns/value", *(f"{weights:>9}" for weights in WEIGHTS))
    for path in (folder, *files):
        found = [measure_quality(published, load(path, weights), tokens, "") for weights in WEIGHTS]
        divergences = (f"{quality.kl_divergence:9.5f}" for quality in found)
        print(f"{path.name:30} {time_reading(path):8.2f}", *divergences, flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LLMOS_CACHE_DIR"] = cache  # files are packed four times over, for nobody else
        main()
