"""A kernel, or a step, beside the peaks of the machine that limit it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import msgspec
import numpy as np

from drivers.bench.peaks import Peaks, measure_peaks

__all__ = ["RoofMeasurement", "measure_roof"]


class RoofMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """Fractions of the peaks, and the peaks: medians over the repetitions, in which both took turns."""

    bandwidth_fraction: float  # of reading in order
    arithmetic_fraction: float  # of int8 or fp32 multiply-adds from registers
    roof_fraction: float  # of whichever of the two limits it
    read_bytes_per_second: float
    operations_per_second: float  # the arithmetic peak
    repetitions: int


def measure_roof(
    run: Callable[[], float],
    least_seconds: Callable[[Peaks], tuple[float, float]],
    stream: np.ndarray,
    *,
    is_integer: bool,
    num_threads: int,
    repetitions: int,
) -> tuple[float, RoofMeasurement]:
    """Measure peaks and a run in turn; the run's seconds, and how near it comes to the peaks.

    Args:
        run: does the work; its seconds.
        least_seconds: what reading and arithmetic of that would take at such peaks.
        stream: flat uint8, larger than the caches, written to before.
        is_integer: the work's arithmetic is that of int8; else of fp32.
        num_threads: that share it.
        repetitions: at least 1.
    """
    samples = []
    for _ in range(repetitions):
        peaks = measure_peaks(is_integer, num_threads, stream)
        seconds = run()
        reading, computing = (least / seconds for least in least_seconds(peaks))
        samples.append(
            (seconds, reading, computing, max(reading, computing),
             peaks.read_bytes_per_second, peaks.operations_per_second)
        )  # fmt: skip
    seconds, reading, computing, roof, read, operations = map(statistics.median, zip(*samples, strict=True))
    return seconds, RoofMeasurement(
        bandwidth_fraction=reading,
        arithmetic_fraction=computing,
        roof_fraction=roof,
        read_bytes_per_second=read,
        operations_per_second=operations,
        repetitions=repetitions,
    )
