"""Copies between a GPU's frames and pinned main memory, beside the steps: a stream for each direction.

The counterpart of `native.transfer` for memory that no thread of the host can touch. Each direction has a
thread of Python, which launches copies and waits for them without the interpreter's lock, so that whoever
asks waits for nothing; a bus carries both directions at once.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define, field

from native.cuda.device import CudaFault, CudaRefused, ffi
from native.cuda.fence import DISABLE_TIMING
from native.cuda.paging import CudaPool
from native.cuda.pinned import PinnedArea

__all__ = ["CudaCopier", "CudaCopy"]

NON_BLOCKING = 1  # a stream that neither waits for the default one nor makes it wait
BLOCKING_SYNC = 1  # who waits for an event sleeps; a thread that spins would take a processor from the steps
MAX_LAUNCHED = 4  # copies of one direction: the bus need not wait for the thread between them


@define(eq=False, kw_only=True)
class CudaCopy:
    """A copy between frames pfns[i] and slots slots[i] of an area, in one direction."""

    is_out: bool  # from the device
    pfns: Sequence[int]
    area: PinnedArea
    slots: Sequence[int]
    piece_bytes: int = 0  # each copied by a call of its own, for comparison; 0: whole runs
    error: Exception | None = field(default=None, init=False)
    _after: int = field(default=0, init=False)  # the last step that it comes behind
    _is_over: threading.Event = field(factory=threading.Event, init=False)


class CudaCopier:
    """Copies frames, in the order in which it is asked to for each direction. Close it before its pool.

    Args:
        pool: whose frames.

    Raises:
        CudaRefused: there are no streams.
        OSError: the system has no more threads or file descriptors.
    """

    def __init__(self, pool: CudaPool) -> None:
        self._pool = pool
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running: list[CudaCopy] = []
        self._ended: deque[CudaCopy] = deque()
        self._directions: list[_Direction] = []
        try:
            for name in ("in", "out"):
                self._directions.append(_Direction(pool, name, self._end))
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """A descriptor that polls as readable when there may be a copy to collect."""
        return self._event

    def open_area(self, memory: mmap.mmap, slot_bytes: int) -> PinnedArea:
        """Main memory to copy from and to; it stays open until the area is closed, after the copier."""
        return PinnedArea(self._pool.device, memory, slot_bytes)

    def submit(self, copy: CudaCopy) -> None:
        """Begin a copy, behind all that was launched until now. Waits for nothing.

        Nobody writes to what is read, or touches what is written, until it has been collected.

        Raises:
            ValueError: a frame or a slot is out of range, or there are not as many of one as of the other.
            CudaFault: the device is beyond use.
        """
        self._pool.check_open()
        self._pool.check_frames(copy.pfns)
        if len(copy.pfns) != len(copy.slots) or not all(0 <= s < copy.area.num_slots for s in copy.slots):
            raise ValueError(f"{len(copy.pfns)} frames, slots {list(copy.slots)} of {copy.area.num_slots}")
        copy._after = self._pool.mark_step()
        self._running.append(copy)
        self._directions[copy.is_out].submit(copy)

    def collect(self) -> list[CudaCopy]:
        """The copies that have ended since the last call.

        Raises:
            CudaFault: the device is beyond use.
        """
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        ended: list[CudaCopy] = []
        while self._ended:
            ended.append(self._ended.popleft())
            self._running.remove(ended[-1])
            if isinstance(ended[-1].error, CudaFault):
                raise ended[-1].error
        return ended

    def wait(self) -> None:
        """Wait until every copy has ended; they are still to be collected. Blocks."""
        for copy in self._running:
            copy._is_over.wait()

    def close(self) -> None:
        """Give up what was not begun, wait for the rest, and end the threads. Idempotent."""
        while self._directions:
            self._directions.pop().close()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    def _end(self, copy: CudaCopy) -> None:
        self._ended.append(copy)
        os.eventfd_write(self._event, 1)
        copy._is_over.set()  # last: who has waited finds it by `collect`


class _Direction:
    """A stream, and the thread that launches on it and waits for it."""

    def __init__(self, pool: CudaPool, name: str, end: Any) -> None:
        self._pool = pool
        self._end = end
        self._is_closing = False
        self._jobs: queue.SimpleQueue[CudaCopy | None] = queue.SimpleQueue()
        stream = ffi.new("CUstream *")
        pool.device.call("cuStreamCreate", stream, NON_BLOCKING)
        self._stream = stream[0]
        self._thread = threading.Thread(target=self._run, name=f"cuda-copies-{name}", daemon=True)
        self._thread.start()

    def submit(self, copy: CudaCopy) -> None:
        self._jobs.put(copy)

    def close(self) -> None:
        self._is_closing = True
        self._jobs.put(None)
        self._thread.join()
        self._pool.device.call("cuStreamDestroy_v2", self._stream)

    def _run(self) -> None:
        launched: deque[tuple[CudaCopy, Any]] = deque()  # with the event that comes when it is over
        while True:
            try:
                job = self._jobs.get(block=not launched)
            except queue.Empty:
                self._finish(*launched.popleft())
                continue
            if job is None:
                break
            if (event := self._begin(job)) is None:
                self._end(job)
                continue
            launched.append((job, event))
            self._launch(job, event)
            if len(launched) == MAX_LAUNCHED:
                self._finish(*launched.popleft())
        while launched:
            self._finish(*launched.popleft())

    def _begin(self, job: CudaCopy) -> Any:
        """An event for the end of a copy; None: the copy has failed."""
        try:
            if self._is_closing:
                raise CudaRefused("the copy was given up")
            self._pool.device.make_current()
            event = ffi.new("CUevent *")
            self._pool.device.call("cuEventCreate", event, DISABLE_TIMING | BLOCKING_SYNC)
        except Exception as error:  # for who collects
            job.error = error
            return None
        return event[0]

    def _launch(self, job: CudaCopy, event: Any) -> None:
        """Launch all of a copy; what was launched before something failed is to be waited for, too."""
        try:
            self._pool.fence.hold(self._stream, job._after)
            for pfn, slot, count in _pieces(job):
                memory, frame = job.area.address(slot), self._pool.address(pfn)
                size = count * self._pool.frame_bytes
                step = job.piece_bytes or size
                for at in range(0, size, step):
                    self._launch_one(job, memory + at, frame + at, min(step, size - at))
        except Exception as error:
            job.error = error
        try:
            self._pool.device.call("cuEventRecord", event, self._stream)
        except Exception as error:
            job.error = error

    def _launch_one(self, job: CudaCopy, memory: int, frame: int, num_bytes: int) -> None:
        call, pointer = self._pool.device.call, ffi.cast("void *", memory)
        if job.is_out:
            call("cuMemcpyDtoHAsync_v2", pointer, frame, num_bytes, self._stream)
        else:
            call("cuMemcpyHtoDAsync_v2", frame, pointer, num_bytes, self._stream)

    def _finish(self, job: CudaCopy, event: Any) -> None:
        try:
            self._pool.device.call("cuEventSynchronize", event)
            self._pool.device.call("cuEventDestroy_v2", event)
        except Exception as error:
            job.error = error  # the later one: it may say that the device is beyond use
        self._end(job)


def _pieces(job: CudaCopy) -> Iterator[tuple[int, int, int]]:
    """Runs of frames and slots that are adjacent on both sides: first frame, first slot, how many."""
    begin = 0
    for index in range(1, len(job.pfns) + 1):
        length = index - begin
        if index == len(job.pfns) or (job.pfns[index], job.slots[index]) != (
            job.pfns[begin] + length,
            job.slots[begin] + length,
        ):
            for slot, count in job.area.runs(job.slots[begin], length):
                yield job.pfns[begin] + slot - job.slots[begin], slot, count
            begin = index
