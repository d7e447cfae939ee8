"""The thread pool: every item once, each phase after the whole of the one before it, on any threads."""

from __future__ import annotations

import errno
import os
import threading
import time

import numpy as np
import pytest
from native._cpu import ffi, lib


def open_pool(num_threads: int):
    """A pool; the caller closes it."""
    out = ffi.new("llmos_pool **")
    assert lib.llmos_pool_open(num_threads, ffi.NULL, out) == 0
    return out[0]


def expected_cells(num_phases: int, num_items: int) -> np.ndarray:
    """What the exercise must leave behind; every fifth phase is empty."""
    cells = np.zeros((num_phases, num_items), dtype=np.uint32)
    total = 0
    for phase in range(num_phases):
        if phase % 5 != 4:
            cells[phase] = (np.arange(num_items) + total) % 2**32
            total = int(cells[phase].sum(dtype=np.uint64)) % 2**32
    return cells


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
@pytest.mark.parametrize("num_items", [1, 2, 5, 64])
def test_phases_follow_each_other(num_threads, num_items):
    """An item sees everything that the phase before it wrote, whoever wrote it, job after job."""
    pool = open_pool(num_threads)
    expected = expected_cells(60, num_items)
    for _ in range(30):
        cells = np.zeros_like(expected)
        workers = np.full(cells.shape, -1, dtype=np.int32)
        lib.llmos_pool_exercise(
            pool, 60, num_items, ffi.from_buffer("uint32_t[]", cells), ffi.from_buffer("int32_t[]", workers)
        )
        assert (cells == expected).all()
        done = workers[np.arange(60) % 5 != 4]
        assert ((done >= 0) & (done < num_threads)).all()
    lib.llmos_pool_close(pool)


def test_a_pool_that_slept_goes_on():
    """Long after a job, when all threads sleep, the next one comes to its end."""
    pool, expected = open_pool(4), expected_cells(40, 16)
    for _ in range(20):
        time.sleep(0.01)
        cells, workers = np.zeros_like(expected), np.zeros(expected.shape, dtype=np.int32)
        lib.llmos_pool_exercise(
            pool, 40, 16, ffi.from_buffer("uint32_t[]", cells), ffi.from_buffer("int32_t[]", workers)
        )
        assert (cells == expected).all()
    lib.llmos_pool_close(pool)


def test_pools_do_not_know_each_other():
    """Two pools that run at the same time, on more threads than there are cores, both come to their end."""
    expected = expected_cells(200, 16)
    results = [np.zeros_like(expected) for _ in range(2)]

    def run(cells: np.ndarray) -> None:
        pool = open_pool(4)
        workers = np.zeros(cells.shape, dtype=np.int32)
        lib.llmos_pool_exercise(
            pool, 200, 16, ffi.from_buffer("uint32_t[]", cells), ffi.from_buffer("int32_t[]", workers)
        )
        lib.llmos_pool_close(pool)

    threads = [threading.Thread(target=run, args=(cells,)) for cells in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((cells == expected).all() for cells in results)


def test_threads_stay_on_their_processors():
    """Each thread may run on the processor that it was given alone; the caller's own are as they were."""
    before, usable = set(os.listdir("/proc/self/task")), os.sched_getaffinity(0)
    processors = [max(usable), min(usable), max(usable)]
    out = ffi.new("llmos_pool **")
    assert lib.llmos_pool_open(4, ffi.new("int32_t[]", processors), out) == 0
    started = set(os.listdir("/proc/self/task")) - before
    allowed = [os.sched_getaffinity(int(thread)) for thread in started]
    assert sorted(map(sorted, allowed)) == sorted([p] for p in processors)
    assert os.sched_getaffinity(0) == usable
    expected = expected_cells(20, 8)
    cells, workers = np.zeros_like(expected), np.zeros(expected.shape, dtype=np.int32)
    lib.llmos_pool_exercise(
        out[0], 20, 8, ffi.from_buffer("uint32_t[]", cells), ffi.from_buffer("int32_t[]", workers)
    )
    assert (cells == expected).all()
    lib.llmos_pool_close(out[0])


@pytest.mark.parametrize("processor", [1023, 1 << 20])
def test_a_processor_that_is_not_there(processor):
    """Is refused, and no thread is left behind."""
    before = set(os.listdir("/proc/self/task"))
    out = ffi.new("llmos_pool **")
    some = min(os.sched_getaffinity(0))
    assert lib.llmos_pool_open(3, ffi.new("int32_t[]", [some, processor]), out) == errno.EINVAL
    assert set(os.listdir("/proc/self/task")) <= before  # threads of others may have ended
