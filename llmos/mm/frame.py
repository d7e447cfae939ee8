"""Physical frames: who may use which, and how many users each has."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from attrs import define, field, frozen

from llmos.device import Pfn
from llmos.errors import KernelPanic, OutOfFrames


@frozen
class FrameStatistics:
    """A frame pool at one moment."""

    num_frames: int
    num_free: int

    @property
    def num_used(self) -> int:
        """Frames with at least one reference."""
        return self.num_frames - self.num_free


@define(eq=False)
class FramePool:
    """Reference-counted frames 0 … num_frames - 1 of one device.

    The lowest free frames go first, so that allocations made together are mostly adjacent (few, long runs
    for I/O and for the host's page tables) and the top of the pool stays free. O(log n) per frame. Frames
    that are asked for by number are left in the heap and skipped when they come up there.

    Args:
        num_frames: physical frames of the device.
    """

    num_frames: int
    # refcounts[pfn]; to be read by others, never written. Plain, since the VMM looks at it for every token;
    # always the same list.
    refcounts: list[int] = field(init=False)
    generations: list[int] = field(init=False)  # times each frame was allocated: which of its lives it is in
    num_free: int = field(init=False)  # frames without any reference
    _heap: list[Pfn] = field(init=False)  # every free frame, each once, and some that were taken by number
    _is_in_heap: bytearray = field(init=False)  # by pfn

    def __attrs_post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a pool has at least 1 frame, not {self.num_frames}")
        self.refcounts = [0] * self.num_frames
        self.generations = [0] * self.num_frames
        self.reset()

    def reset(self) -> None:
        """Free every frame, whoever refers to it."""
        self.refcounts[:] = [0] * self.num_frames
        self.num_free = self.num_frames
        self._heap = [Pfn(pfn) for pfn in range(self.num_frames)]
        self._is_in_heap = bytearray(b"\1" * self.num_frames)

    def allocate(self, count: int) -> list[Pfn]:
        """Take `count` free frames, each with one reference; ascending. All or nothing.

        Raises:
            OutOfFrames: fewer are free.
        """
        if count > self.num_free:
            raise OutOfFrames(count, self.num_free)
        frames: list[Pfn] = []
        while len(frames) < count:
            pfn = heapq.heappop(self._heap)
            self._is_in_heap[pfn] = False
            if self.refcounts[pfn] == 0:
                self.refcounts[pfn] = 1
                self.generations[pfn] += 1
                frames.append(pfn)
        self.num_free -= count
        return frames

    def try_take(self, frames: Sequence[Pfn]) -> bool:
        """Take these very frames, all different, each with one reference; nothing changes if one is used."""
        refcounts = self.refcounts
        if any(refcounts[pfn] for pfn in frames):
            return False
        for pfn in frames:
            refcounts[pfn] = 1
            self.generations[pfn] += 1
        self.num_free -= len(frames)
        return True

    def acquire(self, pfn: Pfn) -> None:
        """Add a reference to a frame in use. Raises KernelPanic when it is free."""
        if self.refcounts[pfn] < 1:
            raise KernelPanic(f"frame {pfn} is acquired while free")
        self.refcounts[pfn] += 1

    def release(self, pfn: Pfn) -> None:
        """Take one reference away; the last one frees the frame. Raises KernelPanic when it is free."""
        count = self.refcounts[pfn] - 1
        if count < 0:
            raise KernelPanic(f"frame {pfn} is released while free")
        self.refcounts[pfn] = count
        if count == 0:
            self.num_free += 1
            if not self._is_in_heap[pfn]:
                self._is_in_heap[pfn] = True
                heapq.heappush(self._heap, pfn)

    def refcount(self, pfn: Pfn) -> int:
        """Count the references to a frame; 0: it is free."""
        return self.refcounts[pfn]

    def statistics(self) -> FrameStatistics:
        """Count. O(1)."""
        return FrameStatistics(num_frames=self.num_frames, num_free=self.num_free)

    def check_integrity(self) -> None:
        """Raise KernelPanic unless every free frame can be found, once, and their number is right. O(n)."""
        in_heap = set(self._heap)
        if len(in_heap) != len(self._heap):
            raise KernelPanic("a frame is in the heap twice")
        for pfn, count in enumerate(self.refcounts):
            if count < 0 or (count == 0 and pfn not in in_heap):
                raise KernelPanic(f"frame {pfn} has {count} references, in the heap: {pfn in in_heap}")
            if self._is_in_heap[pfn] != (pfn in in_heap):
                raise KernelPanic(f"frame {pfn} is in the heap: {pfn in in_heap}, and marked as the contrary")
        if self.refcounts.count(0) != self.num_free:
            raise KernelPanic(f"{self.refcounts.count(0)} frames are free, and {self.num_free} are counted")
