"""Whole steps against what memory allows: `python -m drivers.bench.step`, JSON lines.

Models have random weights. Bandwidth is that of reading as many bytes as a step reads, again and again: from
the same cache, or from memory.

    roof = max(bytes / bandwidth, operations / arithmetic peak);    limit = bytes / bandwidth + 30 us a layer
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
import torch
from native._cpu import ffi, lib

from drivers.bench.peaks import measure_cache_read, seconds_together
from drivers.bench.random_model import random_native_model
from drivers.model.native_transformer import KV_FORMATS, NativeTransformer
from drivers.model.packed import WEIGHT_FORMATS
from drivers.ops.batch import ContiguousPages
from llmos.device import Row, choose_kv_format
from native.arrays import aligned_empty

__all__ = ["SHAPES", "StepCase", "StepMeasurement", "measure_step"]

SHAPES = ("stories260k", "draft", "base", "160m")
LAYER_SECONDS = 30e-6  # what a layer may take besides reading its weights
STEP_SECONDS = 10e-3  # of one timing, at least: short steps are repeated
PROBE_ITERATIONS = 2_000_000


class StepMeasurement(msgspec.Struct, frozen=True):
    """Steps of one kind: medians over the repetitions."""

    shape: str
    weights: str
    kv: str
    num_rows: int
    tokens_per_row: int
    context: int  # tokens that each row sees before its own
    num_threads: int
    microseconds: float
    python_microseconds: float  # besides those, what it takes to hand a step over and to take its results
    size_bytes: int  # that a step reads: weights, keys and values
    read_bytes_per_second: float
    roof_fraction: float  # roof / time
    limit_ratio: float  # time / limit
    phases: dict[str, float]  # thread-microseconds, from runs of their own
    repetitions: int


class StepCase:
    """A step of `num_rows` rows of `tokens_per_row` tokens, each behind `context` tokens of its own."""

    def __init__(self, model: NativeTransformer, num_rows: int, tokens_per_row: int, context: int) -> None:
        self.model, self.num_rows = model, num_rows
        self.tokens_per_row, self.context = tokens_per_row, context
        kv = choose_kv_format(model.info.kv, model.segments, None)
        pages_per_space = kv.num_pages(context + tokens_per_row)
        size = num_rows * pages_per_space * kv.frame_bytes
        frames = [torch.from_numpy(aligned_empty(size)).zero_() for _ in kv.segments]
        self._pages = model.view_pages(frames, kv, ContiguousPages(pages_per_space))
        self.rows = [
            Row(
                asid,
                context,
                tuple((asid + i) % model.config.vocab_size for i in range(tokens_per_row)),
                True,
            )
            for asid in range(num_rows)
        ]
        self._greedy = [None] * num_rows
        self.score()  # binds the pages and reserves scratch
        spans = [(context, tokens_per_row, i * tokens_per_row, i * pages_per_space) for i in range(num_rows)]
        self._spans = ffi.new("llmos_span[]", spans)
        buffers = model._step
        self._step = ffi.new("llmos_step *", buffers.step[0])
        self._step.spans = self._spans
        self._arguments = (model._pool, model._model, model._kv, self._step, buffers.scratch)
        attended = sum(segment.bytes_per_token for segment in model.segments) * (context + tokens_per_row)
        self.size_bytes = model._weights.step_bytes + num_rows * attended
        config, inner = model.config, model.config.intermediate_size
        per_layer = config.hidden_size * (
            (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim + 3 * inner
        )
        self.operations = (
            2
            * num_rows
            * (tokens_per_row * config.num_layers * per_layer + config.hidden_size * config.vocab_size)
        )

    def score(self) -> None:
        """A step as a driver runs it."""
        self.model.choose(self.rows, self._pages, self._greedy)

    def forward(self) -> None:
        """The same without Python's part."""
        lib.llmos_forward(*self._arguments)

    def phases(self, num_steps: int) -> dict[str, float]:
        """Thread-microseconds that a step spends in each kind of phase: medians over some steps."""
        steps = np.zeros((num_steps, lib.LLMOS_NUM_PHASES), dtype=np.int64)
        for busy in steps:
            self._step.busy = ffi.cast("int64_t *", busy.ctypes.data)
            self.forward()
        self._step.busy = ffi.NULL
        names = (ffi.string(lib.llmos_phase_name(i)).decode() for i in range(lib.LLMOS_NUM_PHASES))
        return {name: time / 1e3 for name, time in zip(names, np.median(steps, axis=0).tolist(), strict=True)}


def measure_step(case: StepCase, shape: str, repetitions: int) -> StepMeasurement:
    """Bandwidth, arithmetic peak and steps in turn, `repetitions` times."""
    model, num_threads = case.model, case.model.num_threads
    stream = np.ones(case.size_bytes + num_threads * 4096, dtype=np.uint8)
    is_quantised = WEIGHT_FORMATS[model.info.dtype].is_quantised
    probe = lib.llmos_probe_int8 if is_quantised else lib.llmos_probe_fp32
    num_steps = max(3, int(STEP_SECONDS / min(_seconds(case.forward) for _ in range(3))))
    samples = []
    for _ in range(repetitions):
        bandwidth = measure_cache_read(case.size_bytes // num_threads + 4096, num_threads, stream)
        computing = seconds_together([lambda: probe(PROBE_ITERATIONS)] * num_threads)
        peak = num_threads * probe(1) * PROBE_ITERATIONS / computing
        times = [(_seconds(case.forward), _seconds(case.score)) for _ in range(num_steps)]
        forward, score = np.median(times, axis=0).tolist()
        roof = max(case.size_bytes / bandwidth, case.operations / peak)
        limit = case.size_bytes / bandwidth + LAYER_SECONDS * model.config.num_layers
        samples.append((forward * 1e6, (score - forward) * 1e6, bandwidth, roof / forward, forward / limit))
    microseconds, python, bandwidth, fraction, ratio = map(statistics.median, zip(*samples, strict=True))
    return StepMeasurement(
        shape=shape,
        weights=model.info.dtype,
        kv=model.info.kv,
        num_rows=case.num_rows,
        tokens_per_row=case.tokens_per_row,
        context=case.context,
        num_threads=num_threads,
        microseconds=microseconds,
        python_microseconds=python,
        size_bytes=case.size_bytes,
        read_bytes_per_second=bandwidth,
        roof_fraction=fraction,
        limit_ratio=ratio,
        phases=case.phases(num_steps),
        repetitions=repetitions,
    )


def measure_all(options: argparse.Namespace) -> Iterator[StepMeasurement]:
    """Every combination, model by model."""
    for shape in options.shapes:
        for weights in options.weights:
            for num_threads in options.threads:
                max_positions = options.context + options.tokens
                model = random_native_model(shape, weights, options.kv, num_threads, max_positions)
                for num_rows in options.rows:
                    yield measure_step(
                        StepCase(model, num_rows, options.tokens, options.context), shape, options.runs
                    )


def _seconds(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a line, as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="drivers.bench.step", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--weights", nargs="+", choices=WEIGHT_FORMATS, default=["bf16", "w8a8", "w4a8"])
    parser.add_argument("--kv", choices=KV_FORMATS, default="fp16")
    parser.add_argument("--rows", nargs="+", type=int, default=(1, 16))
    parser.add_argument("--tokens", type=int, default=1, help="of each row")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args(arguments)
    for row in measure_all(options):
        print(msgspec.json.encode(row).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
