"""The thread pool: every item once, each phase after the whole of the one before it, on any threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from native._cpu import ffi, lib


def open_pool(num_threads: int):
    """A pool; the caller closes it."""
    out = ffi.new("llmos_pool **")
    assert lib.llmos_pool_open(num_threads, out) == 0
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
