"""Memory by the CUDA driver's own calls: what mapping costs, and how fast frames go to the host and back."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch

from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured
from native.cuda.copier import CudaCopier, CudaCopy
from native.cuda.device import ffi
from native.cuda.paging import CudaPool, CudaRange

__all__ = ["measure_paging", "measure_swap"]

POOL_FRAMES = 64


def measure_paging(setup: Setup) -> Iterator[Measured]:
    """P50 and P99 of each call of the driver, one frame at a time, within a budget of the shortest step."""
    if not setup.has_time("paging"):
        return
    frame, count = setup.memory.granularity_bytes, setup.sizes.num_calls
    times = _time_calls(setup, frame, count)
    times["map and set access, as the driver does"] = []
    with CudaPool(setup.memory, POOL_FRAMES, frame) as pool, CudaRange(pool, POOL_FRAMES) as place:
        for index in range(count):
            page = index % POOL_FRAMES
            times["map and set access, as the driver does"].append(
                _seconds(lambda: place.map_frames([page], [page]))  # noqa: B023
            )
            place.unmap_pages(page, 1)
    step = setup.sizes.weight_bytes / setup.bandwidth()
    against = f"a step that reads the weights once, {step * 1e3:.3g} ms"
    for call, seconds in times.items():
        ordered = sorted(seconds)
        for metric, value in (("P50", statistics.median(ordered)), ("P99", ordered[int(0.99 * count)])):
            case = f"paging: {call}, {frame >> 10} KiB"
            yield Measured(case, metric, value * 1e6, "us", against, step / value, count)


def _time_calls(setup: Setup, frame: int, count: int) -> dict[str, list[float]]:
    """Seconds of each call by its name, over the lives of `count` frames and their addresses."""
    device = setup.memory
    handle, base = ffi.new("CUmemGenericAllocationHandle *"), ffi.new("CUdeviceptr *")
    calls: dict[str, Callable[[], tuple[Any, ...]]] = {
        "cuMemAddressReserve": lambda: (base, frame, 0, 0, 0),
        "cuMemCreate": lambda: (handle, frame, device.memory, 0),
        "cuMemMap": lambda: (base[0], frame, 0, handle[0], 0),
        "cuMemSetAccess": lambda: (base[0], frame, device.access, 1),
        "cuMemUnmap": lambda: (base[0], frame),
        "cuMemRelease": lambda: (handle[0],),
        "cuMemAddressFree": lambda: (base[0], frame),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count):
        for name, arguments in calls.items():
            given = arguments()
            times[name].append(_seconds(lambda: device.call(name, *given)))  # noqa: B023
    return times


def measure_swap(setup: Setup) -> Iterator[Measured]:
    """Frames to pinned memory and back, by the path that swapping takes, beside one copy of torch's."""
    if not setup.has_time("swap"):
        return
    device, frame, count = setup.memory, setup.memory.granularity_bytes, setup.sizes.swap_frames
    size = count * frame
    with (
        CudaPool(device, count, frame) as pool,
        closing(mmap.mmap(-1, size)) as memory,
        closing(CudaCopier(pool)) as copier,
        closing(copier.open_area(memory, frame)) as area,
    ):
        there = torch.zeros(size, dtype=torch.uint8, device=setup.device)
        here = torch.zeros(size, dtype=torch.uint8, pin_memory=setup.is_gpu)
        for is_out, name in ((True, "device to host"), (False, "host to device")):

            def move(is_out: bool = is_out) -> None:
                copy = CudaCopy(is_out=is_out, pfns=range(count), area=area, slots=range(count))
                copier.submit(copy)
                copier.wait()
                copier.collect()
                if copy.error is not None:
                    raise copy.error

            def move_at_once(is_out: bool = is_out) -> None:
                (here if is_out else there).copy_(there if is_out else here, non_blocking=True)
                setup.synchronize()

            move()  # pins
            move_at_once()
            pairs = [(_seconds(move), _seconds(move_at_once)) for _ in range(setup.sizes.runs)]
            ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
            yield Measured(
                f"swap: {name}, {size >> 20} MiB", "rate", size / ours / 1e9, "GB/s",
                f"one copy of torch's, {size / theirs / 1e9:.4g} GB/s", theirs / ours, setup.sizes.runs,
            )  # fmt: skip


def _seconds(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began
