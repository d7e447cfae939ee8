"""What the machine reaches at most: reading memory and the last cache in order, arithmetic from registers.

Every measurement of a kernel stands beside these, taken in the same run and in turn, so that what the
machine's other work takes falls on both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from native._cpu import ffi, lib

__all__ = ["STREAM_BYTES", "Peaks", "make_stream", "measure_cache_read", "measure_peaks", "seconds_together"]

STREAM_BYTES = 160 << 20  # several times a large third-level cache's share of two cores
PROBE_ITERATIONS = 8_000_000  # some ten milliseconds: the start of a thread must not show
# One thread's share of the last cache: far above the second level's, and small enough to stay beside others'.
CACHE_SET_BYTES = tuple(size << 20 for size in (6, 8, 10, 12, 16))
CACHE_READ_BYTES = 192 << 20  # in each timing, so that it takes milliseconds


@frozen
class Peaks:
    """What some threads reach together at this moment."""

    read_bytes_per_second: float
    operations_per_second: float


def make_stream(size_bytes: int = STREAM_BYTES) -> np.ndarray:
    """Flat bytes that lie in memory, for `measure_peaks`."""
    return np.ones(size_bytes, dtype=np.uint8)


def measure_peaks(is_integer: bool, num_threads: int, stream: np.ndarray) -> Peaks:
    """Read bandwidth over `stream`, and int8 or fp32 arithmetic from registers.

    Args:
        is_integer: int8 multiply-adds into int32; else fp32 multiply-adds.
        num_threads: that work at once, each on its part.
        stream: flat uint8, larger than the caches, written to before.
    """
    part = len(stream) // num_threads // 4096 * 4096
    probe = lib.llmos_probe_int8 if is_integer else lib.llmos_probe_fp32
    reading = seconds_together([_reader(stream, i * part, part, 1) for i in range(num_threads)])
    computing = seconds_together([lambda: probe(PROBE_ITERATIONS)] * num_threads)
    return Peaks(part * num_threads / reading, probe(1) * PROBE_ITERATIONS * num_threads / computing)


def measure_cache_read(set_bytes: int, num_threads: int, stream: np.ndarray) -> float:
    """Bytes per second that threads read together, each a set of its own, over and over.

    Args:
        set_bytes: of one thread's set; its first reading is not timed.
        num_threads: that read at once.
        stream: flat uint8 of at least all sets.

    Raises:
        ValueError: the sets do not fit in `stream`.
    """
    set_bytes = set_bytes // 4096 * 4096
    if not 0 < set_bytes * num_threads <= len(stream):
        raise ValueError(f"{num_threads} sets of {set_bytes} bytes do not fit in {len(stream)}")
    num_readings = max(1, CACHE_READ_BYTES // set_bytes)
    starts = [i * set_bytes for i in range(num_threads)]
    seconds_together([_reader(stream, start, set_bytes, 1) for start in starts])
    seconds = seconds_together([_reader(stream, start, set_bytes, num_readings) for start in starts])
    return num_readings * set_bytes * num_threads / seconds


def seconds_together(tasks: Sequence[Callable[[], Any]]) -> float:
    """Time until all are done; the first on this thread. The kernels run without the interpreter's lock."""
    threads = [threading.Thread(target=task) for task in tasks[1:]]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    tasks[0]()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def _reader(stream: np.ndarray, start: int, size_bytes: int, num_readings: int) -> Callable[[], None]:
    pointer = ffi.cast("char *", stream.ctypes.data + start)

    def read() -> None:
        for _ in range(num_readings):
            lib.llmos_probe_read(pointer, size_bytes)

    return read
