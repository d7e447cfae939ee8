"""A thread that maps frames at pages of a reserved range, beside everything else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from native._cpu import ffi, lib
from native.paging import ReservedRange

__all__ = ["MapJob", "PageMapper"]


@frozen(eq=False)
class MapJob:
    """Pages that are being mapped, or were."""

    pages: tuple[int, ...]
    pfns: tuple[int, ...]
    struct: Any
    arrays: tuple[Any, ...]  # what it points to

    @property
    def seconds(self) -> float:
        """How long it took; it was waited for."""
        return float(self.struct.seconds)


class PageMapper:
    """Maps pages and populates them, in the order in which it is asked to. Close it before its range.

    Args:
        place: where pages are.

    Raises:
        OSError: no thread can be started.
    """

    def __init__(self, place: ReservedRange) -> None:
        self._place = place
        out = ffi.new("llmos_mapper **")
        if error := lib.llmos_mapper_open(place.base, place.pool.frame_bytes, place.pool.fd, out):
            raise OSError(error, f"cannot start a thread that maps pages: {os.strerror(error)}")
        self._mapper = out[0]

    def submit(self, pages: Sequence[int], pfns: Sequence[int]) -> MapJob:
        """Begin to back pages[i] by pfns[i]; nobody touches them, or maps there, before `wait` has returned.

        Keep the job until then.

        Raises:
            ValueError: a page or frame is out of range.
        """
        self._place.check_pairs(pages, pfns)
        job = ffi.new("llmos_map_job *")
        arrays = ffi.new("uint64_t[]", pages), ffi.new("uint64_t[]", pfns)
        job.count = len(pages)
        job.pages, job.frames = arrays
        lib.llmos_mapper_submit(self._mapper, job)
        return MapJob(tuple(pages), tuple(pfns), job, arrays)

    def wait(self, job: MapJob) -> bool:
        """Wait for one job. Blocks, without the interpreter lock.

        Returns:
            True: it was not done yet.

        Raises:
            OSError: the system refused (ENOMEM: too many mappings); some of the pages are not mapped.
        """
        had_to = bool(lib.llmos_mapper_wait(self._mapper, job.struct))
        if error := job.struct.error:
            raise OSError(error, f"cannot map frames {job.pfns} at {job.pages}: {os.strerror(error)}")
        return had_to

    def close(self) -> None:
        """Wait for what was begun and end the thread. Idempotent."""
        if self._mapper is not None:
            mapper, self._mapper = self._mapper, None
            lib.llmos_mapper_close(mapper)
