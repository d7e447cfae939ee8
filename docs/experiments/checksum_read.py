"""What a checksum adds to a read on one processor: 64 MiB from the page cache, stretch by stretch.

python docs/experiments/checksum_read.py [FOLDER]

Printed for each size of a stretch are milliseconds to read all of it, to read it and sum each stretch, and to
sum as much that is in the second-level cache: the third fastest of 21 passes in turn, in processor time.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable

from native.checksum import crc32c

NUM_BYTES = 64 << 20
STRETCHES = (64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20)
NUM_PASSES = 21


def seconds(work: Callable[[memoryview, int], object], area: memoryview, stretch: int) -> float:
    """Processor time of one pass."""
    began = time.thread_time()
    for at in range(0, NUM_BYTES, stretch):
        work(area[at : at + stretch], at)
    return time.thread_time() - began


def main(folder: str) -> None:
    """Measure and print."""
    memory = mmap.mmap(-1, NUM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 7, NUM_BYTES)
    area = memoryview(memory)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.pwrite(file.fileno(), area, 0)

        def read(into: memoryview, at: int) -> None:
            os.preadv(file.fileno(), [into], at)

        def read_and_sum(into: memoryview, at: int) -> None:
            read(into, at)
            crc32c(into)

        for stretch in STRETCHES:
            hot = area[:stretch]
            ways = (read, read_and_sum, lambda into, at, hot=hot: crc32c(hot))
            passes = [[seconds(way, area, stretch) for way in ways] for _ in range(NUM_PASSES)]
            read_ms, both_ms, sum_ms = (1e3 * sorted(column)[2] for column in zip(*passes, strict=True))
            print(
                f"{stretch >> 10:5} KiB: read {read_ms:.2f}, and sum {both_ms:.2f}, sum alone {sum_ms:.2f} ms"
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir())
