"""What a host area costs that outlives its driver: shared memory beside anonymous memory, in turn.

python docs/experiments/shared_host_area.py

Printed is GB/s of 64 MiB in slots of 256 KiB, copied there for the first time, again, and back: medians and
the best of nine. Shared memory has large pages only where the system's `shmem_enabled` says so.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import time
from pathlib import Path

from drivers.areas import open_host_area
from native.transfer import Memory, Transfer, TransferEngine

NUM_BYTES, SLOT_BYTES, NUM_RUNS = 64 << 20, 256 << 10, 9
NUM_SLOTS = NUM_BYTES // SLOT_BYTES
ORDER = random.Random(1).sample(range(NUM_SLOTS), NUM_SLOTS)


def open_shared_area(num_bytes: int) -> mmap.mmap:
    """Memory that another process could go on with."""
    fd = os.memfd_create("host area")
    os.ftruncate(fd, num_bytes)
    area = mmap.mmap(fd, num_bytes)
    area.madvise(mmap.MADV_HUGEPAGE)
    os.close(fd)
    return area


def copy(engine: TransferEngine, source: mmap.mmap, target: mmap.mmap) -> float:
    """GB/s."""
    job = Transfer(
        source=Memory(source), target=Memory(target), slot_bytes=SLOT_BYTES,
        source_slots=range(NUM_SLOTS), target_slots=ORDER,
    )  # fmt: skip
    began = time.perf_counter()
    engine.submit(job)
    engine.wait()
    rate = NUM_BYTES / (time.perf_counter() - began) / 1e9
    engine.collect()
    return rate


def main() -> None:
    """Measure and print."""
    print("shmem_enabled:", Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text().strip())
    device = open_host_area(NUM_BYTES)
    device.write(os.urandom(NUM_BYTES))
    rates: dict[tuple[str, str], list[float]] = {}
    with TransferEngine() as engine:
        for _ in range(NUM_RUNS):
            for kind, open_area in (("anonymous", open_host_area), ("shared", open_shared_area)):
                area = open_area(NUM_BYTES)
                for what, ends in (
                    ("first", (device, area)),
                    ("again", (device, area)),
                    ("back", (area, device)),
                ):
                    rates.setdefault((kind, what), []).append(copy(engine, *ends))
                area.close()
    for (kind, what), found in rates.items():
        print(f"{kind:9} {what}: {statistics.median(found):.1f} GB/s, best {max(found):.1f}")


if __name__ == "__main__":
    main()
