"""Memory by the CUDA driver's own calls: what mapping costs, and how fast frames go to the host and back."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured
from native.cuda.copier import CudaCopier, CudaCopy
from native.cuda.device import ffi
from native.cuda.paging import CudaPool, CudaRange

__all__ = ["measure_paging", "measure_swap"]

POOL_FRAMES = 64
STEP_SECONDS = 5e-3  # that a call is a share of: a step of a few rows of an 8B model on a large GPU


def measure_paging(setup: Setup) -> Iterator[Measured]:
    """P50 and P99 of each call of the driver, one frame at a time."""
    if not setup.has_time("paging"):
        return
    device, frame = setup.memory, setup.memory.granularity_bytes
    count = setup.sizes.num_calls
    handle = ffi.new("CUmemGenericAllocationHandle *")
    times: dict[str, list[float]] = {"create": [], "map and set access": [], "unmap": [], "release": []}
    for _ in range(count):
        times["create"].append(_seconds(lambda: device.call("cuMemCreate", handle, frame, device.memory, 0)))
        times["release"].append(_seconds(lambda: device.call("cuMemRelease", handle[0])))
    with CudaPool(device, POOL_FRAMES, frame) as pool, CudaRange(pool, POOL_FRAMES) as place:
        for index in range(count):
            page = index % POOL_FRAMES
            times["map and set access"].append(_seconds(lambda: place.map_frames([page], [page])))  # noqa: B023
            times["unmap"].append(_seconds(lambda: place.unmap_pages(page, 1)))  # noqa: B023
    for call, seconds in times.items():
        ordered = sorted(seconds)
        for metric, value in (("P50", statistics.median(ordered)), ("P99", ordered[int(0.99 * count)])):
            share = f"a step of {STEP_SECONDS * 1e3:g} ms"
            case = f"paging: {call}, {frame >> 10} KiB"
            yield Measured(case, metric, value * 1e6, "us", share, STEP_SECONDS / value, count)


def measure_swap(setup: Setup) -> Iterator[Measured]:
    """Frames between the device and pinned memory, by the path that swapping takes."""
    if not setup.has_time("swap"):
        return
    device, frame, count = setup.memory, setup.memory.granularity_bytes, setup.sizes.swap_frames
    with (
        CudaPool(device, count, frame) as pool,
        closing(mmap.mmap(-1, count * frame)) as memory,
        closing(CudaCopier(pool)) as copier,
        closing(copier.open_area(memory, frame)) as area,
    ):
        for is_out, name in ((True, "device to host"), (False, "host to device")):

            def move(is_out: bool = is_out) -> float:
                copy = CudaCopy(is_out=is_out, pfns=range(count), area=area, slots=range(count))
                began = time.perf_counter()
                copier.submit(copy)
                copier.wait()
                seconds = time.perf_counter() - began
                copier.collect()
                if copy.error is not None:
                    raise copy.error
                return seconds

            move()  # pins
            seconds = statistics.median(move() for _ in range(setup.sizes.runs))
            rate = count * frame / seconds
            case = f"swap: {name}, {count * frame >> 20} MiB"
            against = setup.bandwidth()
            yield Measured(
                case, "rate", rate / 1e9, "GB/s", f"copy within, {against / 1e9:.4g} GB/s", rate / against,
                setup.sizes.runs,
            )  # fmt: skip


def _seconds(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began
