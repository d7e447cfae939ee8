"""Attention against the machine's own peaks: `python -m drivers.bench.attention`, JSON lines.

For each case, the peaks and the attention of one step are measured in turn, several times, and the median
of each ratio is reported: what the machine's other work takes falls on both. Keys and values of as many
layers as exceed the caches lie in scattered pages, so that each layer reads its own from memory, as a model's
layers do.

    roof = max(bytes of keys and values that are seen / read bandwidth, operations / fp32 peak)
    roof_fraction = roof / time

An operation is a multiplication or an addition of the two products, q k and weights v, for keys that are
seen.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from attrs import frozen
from native._cpu import ffi

from drivers.bench.peaks import STREAM_BYTES, make_stream, seconds_together
from drivers.bench.roof import RoofMeasurement, measure_roof
from llmos.device import DEFAULT_PAGE_TOKENS
from native.attention import KVLayout, bind_attend, make_spans, num_items, rope_write_kv

__all__ = ["CASES", "SHAPES", "AttentionMeasurement", "CacheLayers", "Case", "measure_attention"]

Format = Literal["fp32", "fp16", "bf16", "int8"]

TOKENS_PER_PAGE = DEFAULT_PAGE_TOKENS
MAX_OPERATIONS = 20_000_000_000  # of one timing and thread, to keep long prompts short


@frozen
class Case:
    """A row of a step: so many tokens behind a context that is already there."""

    name: str
    context: int
    num_tokens: int

    @property
    def num_positions(self) -> int:
        """Keys there are when the step ends."""
        return self.context + self.num_tokens

    @property
    def num_pairs(self) -> int:
        """Keys seen, summed over the tokens."""
        return self.context * self.num_tokens + self.num_tokens * (self.num_tokens + 1) // 2


CASES = {
    case.name: case
    for case in (
        Case("decode-1k", 1023, 1),
        Case("decode-8k", 8191, 1),
        Case("decode-32k", 32767, 1),
        Case("prefill-512", 0, 512),
        Case("prefill-512-at-4k", 4096, 512),
    )
}
SHAPES = {"32/8/64": (32, 8, 64), "12/12/64": (12, 12, 64)}  # query heads, kv heads, dimension


class AttentionMeasurement(RoofMeasurement, frozen=True, kw_only=True):
    """One layer's attention in one step on some threads: medians over the repetitions."""

    case: str
    kv_format: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_threads: int
    microseconds: float


class CacheLayers:
    """Keys and values of `num_positions` tokens, of as many layers as fill `total_bytes`, at least one.

    Args:
        kv_format: of keys and values.
        shape: query heads, kv heads, dimension.
        num_positions: tokens in the cache.
        total_bytes: keys and values of all layers together.
    """

    def __init__(
        self, kv_format: Format, shape: tuple[int, int, int], num_positions: int, total_bytes: int
    ) -> None:
        num_pages = -(-num_positions // TOKENS_PER_PAGE)
        one = KVLayout(kv_format, *shape, TOKENS_PER_PAGE)
        self.layer_bytes = one.layer_bytes
        num_layers = max(1, total_bytes // (2 * num_pages * one.layer_bytes))
        self.layout = KVLayout(kv_format, *shape, TOKENS_PER_PAGE, page_bytes=num_layers * one.layer_bytes)
        page_bytes = self.layout.page_bytes
        buffers = [np.empty(num_pages * page_bytes + 64, dtype=np.uint8) for _ in range(2)]
        arenas = [buffer[-buffer.ctypes.data % 64 :][: num_pages * page_bytes] for buffer in buffers]
        keys, values = (arena.ctypes.data for arena in arenas)
        self.alive = buffers
        self.layers = [
            self.layout.bind(
                ffi.cast("void *", keys + layer * one.layer_bytes),
                ffi.cast("void *", values + layer * one.layer_bytes),
            )
            for layer in range(num_layers)
        ]
        self.pages = np.random.default_rng(0).permutation(num_pages).astype(np.int32)
        self._fill(arenas)

    def _fill(self, arenas: list[np.ndarray]) -> None:
        """Write one page of random keys and values, and copy it to the others."""
        layout, rng = self.layout, np.random.default_rng(1)
        width = (layout.num_heads + 2 * layout.num_kv_heads) * layout.head_dim
        shape = (TOKENS_PER_PAGE, layout.head_dim // 2)
        cos, sin = np.ones(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        spans = make_spans([(0, TOKENS_PER_PAGE, 0, 0)])
        for kv in self.layers:
            qkv = rng.standard_normal((TOKENS_PER_PAGE, width), dtype=np.float32)
            rope_write_kv(kv, spans, None, qkv, cos, sin)
        for arena in arenas:
            pages = arena.reshape(-1, layout.page_bytes)
            pages[1:] = pages[0]

    def seconds(self, case: Case, num_threads: int) -> float:
        """Time of one layer; threads share its work items, each through all layers on its own."""
        layout = self.layout
        width = layout.num_heads * layout.head_dim
        q = np.random.default_rng(2).standard_normal((case.num_tokens, width), dtype=np.float32)
        out = np.zeros((case.num_tokens, width), dtype=np.float32)
        spans = make_spans([(case.context, case.num_tokens, 0, 0)])
        cuts = self.cut_items(case, num_threads, num_items(self.layers[0], spans))
        layers = self.layers[: max(1, MAX_OPERATIONS * num_threads // num_operations(layout, case))]

        def share(items: tuple[int, int]) -> Callable[[], None]:
            calls = [bind_attend(kv, spans, self.pages, q, out, items) for kv in layers]

            def run() -> None:
                for call in calls:
                    call()

            return run

        shares = [share((a, b)) for a, b in itertools.pairwise(cuts) if a < b]
        return seconds_together(shares) / len(layers)

    def cut_items(self, case: Case, num_threads: int, total: int) -> list[int]:
        """Where `total` items are cut so that every thread has about as many keys to see."""
        heads = self.layout.num_kv_heads
        tile_tokens = -(-case.num_tokens * heads // total)
        ends = range(tile_tokens, case.num_tokens + tile_tokens, tile_tokens)
        seen = [Case("", case.context, min(end, case.num_tokens)).num_pairs for end in ends]
        costs = [b - a for a, b in itertools.pairwise([0, *seen]) for _ in range(heads)]
        done = [0, *itertools.accumulate(costs)]
        return [bisect.bisect_left(done, done[-1] * i // num_threads) for i in range(num_threads + 1)]


def num_operations(layout: KVLayout, case: Case) -> int:
    """Of the two products of one layer."""
    return 4 * case.num_pairs * layout.num_heads * layout.head_dim


def measure_attention(
    cache: CacheLayers, case: Case, num_threads: int, repetitions: int, stream: np.ndarray
) -> AttentionMeasurement:
    """Peaks and attention in turn, `repetitions` times.

    Args:
        cache: keys and values of at least the case's positions.
        case: the step.
        num_threads: that share the work.
        repetitions: at least 1.
        stream: flat uint8, larger than the caches, written to before.
    """
    layout = cache.layout
    size_bytes = 2 * cache.layer_bytes * case.num_positions / TOKENS_PER_PAGE
    operations = num_operations(layout, case)
    seconds, roof = measure_roof(
        lambda: cache.seconds(case, num_threads),
        lambda peaks: (size_bytes / peaks.read_bytes_per_second, operations / peaks.operations_per_second),
        stream, is_integer=False, num_threads=num_threads, repetitions=repetitions,
    )  # fmt: skip
    return AttentionMeasurement(
        case=case.name,
        kv_format=layout.format,
        num_heads=layout.num_heads,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        num_threads=num_threads,
        microseconds=seconds * 1e6,
        **msgspec.structs.asdict(roof),
    )


def measure_all(
    cases: Sequence[Case],
    formats: Sequence[Format],
    shapes: Sequence[tuple[int, int, int]],
    thread_counts: Sequence[int],
    repetitions: int,
) -> Iterator[AttentionMeasurement]:
    """Every combination, case by case."""
    stream = make_stream(STREAM_BYTES)
    for case, shape, kv_format in itertools.product(cases, shapes, formats):
        cache = CacheLayers(kv_format, shape, case.num_positions, STREAM_BYTES)
        for num_threads in thread_counts:
            yield measure_attention(cache, case, num_threads, repetitions, stream)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a line, as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="drivers.bench.attention", description=__doc__.splitlines()[0])
    formats: Any = get_args(Format)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--formats", nargs="+", choices=formats, default=formats)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args(arguments)
    cases, shapes = [CASES[name] for name in options.cases], [SHAPES[name] for name in options.shapes]
    for row in measure_all(cases, options.formats, shapes, options.threads, options.runs):
        print(msgspec.json.encode(row).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
