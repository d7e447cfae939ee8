"""What `llmos bench transfer` measures: `python -m drivers.bench.transfer` writes JSON lines as in rows.py.

Each case moves the same bytes as one large copy between the same ends (one memmove, one pwrite, one pread, as
far as the system takes them at once), measured in turn with it. Files have been written before: their blocks
are there, and as a rule in the page cache.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
from attrs import evolve, frozen

from drivers.areas import open_swap_file
from drivers.bench.rows import Measured, Plan, Started
from native.transfer import File, Memory, Transfer, TransferEngine

__all__ = ["Shape", "main", "shapes"]

TOTAL_BYTES, QUICK_TOTAL_BYTES = 64 << 20, 1 << 20
SLOT_BYTES = (64 << 10, 256 << 10, 1 << 20, 2 << 20)
RUNS = (1, 4, 16)  # slots that are adjacent at both ends
PIECE_BYTES = (4 << 10, 32 << 10)  # sixteen tokens of one layer's keys: of a small model, and of one with 8B
ROUTES = ("memory to memory", "memory to disk", "disk to memory")


@frozen
class Shape:
    """How the bytes are laid out, and how they are copied."""

    route: str
    slot_bytes: int
    run: int
    piece_bytes: int = 0
    has_checksums: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        name = f"{self.route}: slots of {self.slot_bytes >> 10} KiB, runs of {self.run}"
        if self.piece_bytes:
            name += f", in pieces of {self.piece_bytes >> 10} KiB"
        return name + (", with checksums" if self.has_checksums else "")


def shapes(is_quick: bool) -> list[Shape]:
    """What is measured."""
    found: list[Shape] = []
    for route in ROUTES:
        sizes, runs = (SLOT_BYTES[:1], RUNS[:1]) if is_quick else (SLOT_BYTES, RUNS)
        found += [Shape(route, size, run) for size in sizes for run in runs]
        if route != ROUTES[0]:
            found += [Shape(route, size, runs[-1], has_checksums=True) for size in sizes]
        found += [Shape(route, sizes[-1], 1, piece_bytes) for piece_bytes in PIECE_BYTES]
    return found


class Ends:
    """Two areas of memory and two files, of as many bytes each. Close it."""

    def __init__(self, num_bytes: int, folder: str) -> None:
        self.num_bytes = num_bytes
        self._folder = folder
        self._closing, self._files = ExitStack(), ExitStack()
        self.source, self.target = (self._open_area() for _ in range(2))

    def write_files(self, engine: TransferEngine, shape: Shape) -> None:
        """Begin new files, one for the large copy: a page cache stays in the units of the first writes."""
        self._files.close()
        self.file, self.large_file = self._open_file(), self._open_file()
        self.copy(engine, evolve(shape, route="memory to disk"))
        self.copy_large("memory to disk")

    def _open_file(self) -> int:
        fd = open_swap_file(self._folder)
        self._files.callback(os.close, fd)
        return fd

    def _open_area(self) -> mmap.mmap:
        area = mmap.mmap(-1, self.num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._closing.callback(area.close)
        area.madvise(mmap.MADV_HUGEPAGE)
        area.write(random.Random(1).randbytes(self.num_bytes))
        return area

    def copy_large(self, route: str) -> float:
        """One large copy; seconds."""
        began = time.perf_counter()
        if route == "memory to memory":
            ctypes.memmove(_address(self.target), _address(self.source), self.num_bytes)
        else:
            move = os.pwritev if route == "memory to disk" else os.preadv
            done = 0
            with memoryview(self.source if route == "memory to disk" else self.target) as view:
                while done < self.num_bytes:
                    with view[done:] as rest:
                        done += move(self.large_file, [rest], done)
        return time.perf_counter() - began

    def copy(self, engine: TransferEngine, shape: Shape) -> float:
        """The same bytes, slot by slot, with the runs in another order; seconds."""
        count = self.num_bytes // shape.slot_bytes
        starts = list(range(0, count, shape.run))
        random.Random(2).shuffle(starts)
        targets = [slot for start in starts for slot in range(start, min(start + shape.run, count))]
        from_name, to_name = shape.route.split(" to ")
        job = Transfer(
            source=File(self.file) if from_name == "disk" else Memory(self.source),
            target=File(self.file) if to_name == "disk" else Memory(self.target),
            slot_bytes=shape.slot_bytes,
            source_slots=sorted(targets),
            target_slots=targets,
            wants_checksums=shape.has_checksums,
            piece_bytes=shape.piece_bytes,
        )
        began = time.perf_counter()
        engine.submit(job)
        engine.wait()
        seconds = time.perf_counter() - began
        (ended,) = engine.collect()
        if ended.errors:
            raise OSError(f"{len(ended.errors)} slots were not copied: {ended.errors}")
        return seconds

    def close(self) -> None:
        """Give everything back."""
        self._files.close()
        self._closing.close()


def measure(shape: Shape, ends: Ends, engine: TransferEngine, num_runs: int) -> Measured:
    """One row: ours beside the large copy, in turn, and which comes first changes."""
    ours: Callable[[], float] = lambda: ends.copy(engine, shape)  # noqa: E731
    large: Callable[[], float] = lambda: ends.copy_large(shape.route)  # noqa: E731
    ours(), large()
    pairs = [(ours(), large()) if i % 2 else (large(), ours())[::-1] for i in range(num_runs)]
    seconds = statistics.median(own for own, _ in pairs)
    other = statistics.median(whole for _, whole in pairs)
    ratio = statistics.median(whole / own for own, whole in pairs)
    against = f"one large copy, {ends.num_bytes / other / 1e9:.1f} GB/s"
    return Measured(shape.name, "bandwidth", ends.num_bytes / seconds / 1e9, "GB/s", against, ratio, num_runs)


def run(folder: str, num_runs: int, is_quick: bool) -> Iterator[Plan | Started | Measured]:
    """Measure all shapes."""
    cases = shapes(is_quick)
    yield Plan(len(cases))
    ends = Ends(QUICK_TOTAL_BYTES if is_quick else TOTAL_BYTES, folder)
    with closing(ends), TransferEngine() as engine:
        for shape in cases:
            yield Started(shape.name)
            if "disk" in shape.route:
                ends.write_files(engine, shape)
            yield measure(shape, ends, engine, num_runs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a line, as soon as it is known."""
    parser = argparse.ArgumentParser(prog="drivers.bench.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=tempfile.gettempdir(), type=Path)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few bytes of each kind")
    given = parser.parse_args(arguments)
    for message in run(str(given.folder), given.runs, given.quick):
        print(msgspec.json.encode(message).decode(), flush=True)
    return 0


def _address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


if __name__ == "__main__":
    sys.exit(main())
