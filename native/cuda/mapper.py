"""A thread that maps frames of a GPU beside everything else; the counterpart of `native.mapper`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

from attrs import define, field

from native.cuda.paging import CudaRange

__all__ = ["CudaMapJob", "CudaMapper"]


@define(eq=False)
class CudaMapJob:
    """Pages that are being mapped, or were."""

    pages: tuple[int, ...]
    pfns: tuple[int, ...]
    after: int  # the last step that may touch what is replaced
    done: threading.Event = field(factory=threading.Event, init=False)
    error: Exception | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)  # how long it took; it was waited for


class CudaMapper:
    """Maps pages in the order in which it is asked to. Close it before its range.

    Calls of the driver run without the interpreter's lock, so a thread of Python is enough.

    Args:
        place: where pages are.
    """

    def __init__(self, place: CudaRange) -> None:
        self._place = place
        self._jobs: queue.SimpleQueue[CudaMapJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cuda-mapper", daemon=True)
        self._thread.start()

    def submit(self, pages: Sequence[int], pfns: Sequence[int]) -> CudaMapJob:
        """Begin to back pages[i] by pfns[i]; nobody touches them, or maps there, before `wait` has returned.

        Raises:
            ValueError: a page or frame is out of range.
        """
        self._place.check_pairs(pages, pfns)
        job = CudaMapJob(tuple(pages), tuple(pfns), self._place.last_use(pages))
        self._jobs.put(job)
        return job

    def wait(self, job: CudaMapJob) -> bool:
        """Wait for one job.

        Returns:
            True: it was not done yet.

        Raises:
            CudaRefused: the driver refused; some of the pages are not mapped.
            CudaFault: the device is beyond use.
        """
        had_to = not job.done.is_set()
        job.done.wait()
        if job.error is not None:
            raise job.error
        return had_to

    def close(self) -> None:
        """Wait for what was begun and end the thread. Idempotent."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        is_current = False
        while (job := self._jobs.get()) is not None:
            began = time.perf_counter()
            try:
                if not is_current:
                    self._place.pool.device.make_current()
                    is_current = True
                self._place.map_frames(job.pages, job.pfns, job.after)
            except Exception as error:  # for who waits
                job.error = error
            job.seconds = time.perf_counter() - began
            job.done.set()
