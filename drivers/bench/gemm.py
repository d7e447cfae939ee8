"""Products with packed weights against the machine's own peaks: `python -m drivers.bench.gemm`, JSON lines.

For each format and number of rows, the peaks and the product are measured in turn, several times, and the
median of each ratio is reported: what the machine's other work takes falls on both. Weights are copies that
together exceed the caches, so that each product reads its own from memory, as a model's layers do.

    roof = max(weight bytes / read bandwidth, operations / arithmetic peak);    ratio = roof / time
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from drivers.bench.peaks import STREAM_BYTES, make_stream, seconds_together
from drivers.bench.roof import RoofMeasurement, measure_roof
from native.arrays import aligned_empty
from native.gemm import bind_multiply
from native.pack import PackedWeight, WeightFormat, pack_weight
from native.quantise import quantise_rows

__all__ = ["GemmMeasurement", "WeightCopies", "measure_gemm"]

ROW_COUNTS = (1, 4, 8, 16, 32, 64, 128, 512)
OUTPUTS, INPUTS = 2048, 2048
MAX_OPERATIONS = 30_000_000_000  # of one timing and thread, to keep large products short


class GemmMeasurement(RoofMeasurement, frozen=True, kw_only=True):
    """One product on some threads: medians over the repetitions."""

    weight_format: str
    num_outputs: int
    num_inputs: int
    num_rows: int
    num_threads: int
    microseconds: float


class WeightCopies:
    """A random weight [n, k], as many copies of it as fill `total_bytes`, and what multiplies them."""

    def __init__(self, weight_format: WeightFormat, n: int, k: int, total_bytes: int) -> None:
        first = pack_weight(weight_format, np.random.default_rng(0).standard_normal((n, k), dtype=np.float32))
        self.weight_format, self.n, self.k = weight_format, n, k
        self.size_bytes = len(first.data)
        self.weights: list[PackedWeight] = []
        for _ in range(max(1, total_bytes // self.size_bytes)):
            data = aligned_empty(self.size_bytes)
            data[:] = first.data
            self.weights.append(PackedWeight(weight_format, n, k, data, first.scale))

    def seconds(self, num_rows: int, num_threads: int) -> float:
        """Time of one product; threads share its columns, each through all copies on its own."""
        rng = np.random.default_rng(num_rows)
        rows = np.zeros((num_rows, self.k + 16), dtype=np.float32)[:, : self.k]  # not a power of two apart
        rows[:] = rng.standard_normal((num_rows, self.k), dtype=np.float32)
        x = quantise_rows(rows) if self.weight_format.is_quantised else rows
        out = np.zeros((num_rows, self.n), dtype=np.float32)
        tiles = -(-self.n // 64)
        cuts = [min(tiles * i // num_threads * 64, self.n) for i in range(num_threads + 1)]
        cuts[-1] = self.n
        operations = 2 * num_rows * self.n * self.k
        weights = self.weights[: max(1, MAX_OPERATIONS * num_threads // operations)]

        def share(columns: tuple[int, int]) -> Callable[[], None]:
            products = [bind_multiply(weight, x, out, columns=columns) for weight in weights]

            def run() -> None:
                for product in products:
                    product()

            return run

        shares = [share((a, b)) for a, b in itertools.pairwise(cuts) if a < b]
        return seconds_together(shares) / len(weights)


def measure_gemm(
    copies: WeightCopies, num_rows: int, num_threads: int, repetitions: int, stream: np.ndarray
) -> GemmMeasurement:
    """Peaks and product in turn, `repetitions` times.

    Args:
        copies: the weight.
        num_rows: of activations.
        num_threads: that share the work.
        repetitions: at least 1.
        stream: flat uint8, larger than the caches, written to before.
    """
    size_bytes, operations = copies.size_bytes, 2 * num_rows * copies.n * copies.k
    seconds, roof = measure_roof(
        lambda: copies.seconds(num_rows, num_threads),
        lambda peaks: (size_bytes / peaks.read_bytes_per_second, operations / peaks.operations_per_second),
        stream, is_integer=copies.weight_format.is_quantised, num_threads=num_threads,
        repetitions=repetitions,
    )  # fmt: skip
    return GemmMeasurement(
        weight_format=copies.weight_format.name,
        num_outputs=copies.n,
        num_inputs=copies.k,
        num_rows=num_rows,
        num_threads=num_threads,
        microseconds=seconds * 1e6,
        **msgspec.structs.asdict(roof),
    )


def measure_all(
    formats: Sequence[WeightFormat],
    row_counts: Sequence[int],
    thread_counts: Sequence[int],
    repetitions: int,
) -> Iterator[GemmMeasurement]:
    """Every combination, format by format."""
    stream = make_stream(STREAM_BYTES)
    for weight_format in formats:
        copies = WeightCopies(weight_format, OUTPUTS, INPUTS, STREAM_BYTES)
        for num_threads in thread_counts:
            for num_rows in row_counts:
                yield measure_gemm(copies, num_rows, num_threads, repetitions, stream)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a line, as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="drivers.bench.gemm", description=__doc__.splitlines()[0])
    names = [weight_format.name.lower() for weight_format in WeightFormat]
    parser.add_argument("--formats", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", nargs="+", type=int, default=ROW_COUNTS)
    parser.add_argument("--threads", nargs="+", type=int, default=(1,))
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args(arguments)
    formats = [WeightFormat[name.upper()] for name in options.formats]
    for row in measure_all(formats, options.rows, options.threads, options.runs):
        print(msgspec.json.encode(row).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
