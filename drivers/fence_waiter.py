"""A thread that waits for a device, so that whoever has more to do can poll for it."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time

from drivers.model.launch import Fence

__all__ = ["FenceWaiter"]


class FenceWaiter:
    """Waits for fences, in order. One user; waiting does not hold the interpreter's lock."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._num_passed = 0
        self._fences: queue.SimpleQueue[Fence | None] = queue.SimpleQueue()
        self._times: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fences", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """A descriptor that polls as readable when there are fences that `count_passed` has not counted."""
        return self._event

    def add(self, fence: Fence) -> None:
        """Wait for one more fence."""
        self._fences.put(fence)

    def count_passed(self) -> int:
        """How many were passed, of all that were ever added. Does not wait."""
        with contextlib.suppress(BlockingIOError):
            self._num_passed += os.eventfd_read(self._event)
        return self._num_passed

    def wait(self) -> float:
        """Wait for the oldest fence that nobody has waited for. Returns when it passed, by perf_counter."""
        return self._times.get()

    def close(self) -> None:
        """Wait for what was added, and end the thread. Idempotent."""
        if self._event >= 0:
            self._fences.put(None)
            self._thread.join()
            os.close(self._event)
            self._event = -1

    def _run(self) -> None:
        while (fence := self._fences.get()) is not None:
            with contextlib.suppress(Exception):  # the device is beyond use: who collects is told, too
                fence.synchronize()
            self._times.put(time.perf_counter())
            os.eventfd_write(self._event, 1)
