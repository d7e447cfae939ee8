"""The far end of `llmos bench map`: a driver of models with random weights, and what its map calls take.

`python -m drivers.bench.map --fd N --threads N` serves a socket, as drivers.host does. When it is told to
stop it prints one line of JSON: the map calls that it measured before, and how maps ahead of need went.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from drivers.bench.random_model import RandomDriver
from drivers.bench.rows import Latest
from drivers.host import serve
from drivers.host_arena import HostArena
from drivers.link import KernelLink
from drivers.model.loader import ProgressCallback
from drivers.model.native_transformer import NativeTransformer
from llmos.device import KVFormat, Load, MapWork, Quality
from native.mapper import PageMapper
from native.paging import MemoryPool, ReservedRange

__all__ = ["CallTimes", "measure_calls"]

NUM_CALLS = 64  # of each kind, on frames that have memory


class CallTimes(msgspec.Struct, frozen=True):
    """Seconds for one frame of memory that was used before: medians, and the 99th percentile of the call."""

    frame_bytes: int
    map_call: float
    map_call_p99: float
    first_touch: float  # of every page of the system in a frame that was only mapped
    map_and_populate: float  # by the mapper's thread


class MapDriver(RandomDriver):
    """A RandomDriver that keeps its model from load to load, and the counts of the arenas it had."""

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads)
        self._models = Latest(lambda load, report: super(MapDriver, self).load_model(load, report))
        self._arenas: list[HostArena] = []

    def load_model(self, load: Load, report: ProgressCallback) -> tuple[NativeTransformer, Quality | None]:
        """See Backend."""
        key = msgspec.structs.replace(load, pool_bytes=None, frame_bytes=None)
        found: tuple[NativeTransformer, Quality | None] = self._models(key, report)
        return found

    def open_arena(self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int) -> HostArena:
        """See Backend."""
        self._arenas.append(super().open_arena(kv, num_frames, max_spaces, pages_per_space))
        return self._arenas[-1]

    def works(self) -> list[MapWork]:
        """Of every arena that was opened."""
        return [arena.map_work() for arena in self._arenas]


def measure_calls(frame_bytes: int) -> CallTimes:
    """Time map calls, touches and the mapper, one frame at a time, in turn."""
    with MemoryPool(NUM_CALLS, frame_bytes) as pool, ReservedRange(pool, 4 * NUM_CALLS) as place:
        pool.buffer()[:] = bytes(pool.size_bytes)
        mapper = PageMapper(place)
        memory = np.frombuffer(place.buffer(), dtype=np.uint8)
        times: list[tuple[float, float, float]] = []
        for pfn in range(NUM_CALLS):
            mapped, populated = 4 * pfn, 4 * pfn + 2  # apart: neighbours become one mapping
            touched = memory[mapped * frame_bytes : (mapped + 1) * frame_bytes : 4096]

            def touch(touched: np.ndarray = touched) -> None:
                touched[:] = 1

            times.append(
                (
                    _seconds(lambda: place.map_frames([mapped], [pfn])),  # noqa: B023 - called at once
                    _seconds(touch),
                    _job_seconds(mapper, populated, pfn),
                )
            )
        mapper.close()
        del memory, touched
        calls, touches, jobs = (sorted(kind) for kind in zip(*times, strict=True))
    return CallTimes(
        frame_bytes,
        statistics.median(calls),
        calls[int(0.99 * len(calls))],
        statistics.median(touches),
        statistics.median(jobs),
    )


def _seconds(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def _job_seconds(mapper: PageMapper, page: int, pfn: int) -> float:
    job = mapper.submit([page], [pfn])
    mapper.wait(job)
    return job.seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure map calls, serve, say what the calls took and what the last arena counted."""
    parser = argparse.ArgumentParser(prog="drivers.bench.map", description=__doc__.splitlines()[0])
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to whoever measures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, nargs="*", default=(), help="sizes to time calls with")
    given = parser.parse_args(arguments)
    calls = [measure_calls(frame_bytes) for frame_bytes in given.frames]
    driver = MapDriver(given.threads)
    link = KernelLink(socket.socket(fileno=given.fd))
    try:
        serve(link, driver, "cpu:0")
    finally:
        link.close()
    num_ahead = sum(work.num_ahead for work in driver.works())
    num_waits = sum(work.num_late for work in driver.works())
    farewell = {"calls": calls, "num_ahead": num_ahead, "num_waits": num_waits}
    print(msgspec.json.encode(farewell).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
