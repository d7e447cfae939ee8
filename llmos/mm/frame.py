"""Physical frames: who may use which, and how many users each has."""

from __future__ import annotations

import heapq

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
    for I/O and for the host's page tables) and the top of the pool stays free. O(log n) per frame.

    Args:
        num_frames: physical frames of the device.
    """

    num_frames: int
    # refcounts[pfn]; to be read by others, never written. Plain, since the VMM looks at it for every token.
    refcounts: list[int] = field(init=False)
    generations: list[int] = field(
        init=False
    )  # how often each frame was allocated: which of its lives it is in
    _free: list[Pfn] = field(init=False)  # a heap

    def __attrs_post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a pool has at least 1 frame, not {self.num_frames}")
        self.refcounts = [0] * self.num_frames
        self.generations = [0] * self.num_frames
        self._free = [Pfn(pfn) for pfn in range(self.num_frames)]

    @property
    def num_free(self) -> int:
        """Frames without any reference."""
        return len(self._free)

    def allocate(self, count: int) -> list[Pfn]:
        """Take `count` free frames, each with one reference; ascending. All or nothing.

        Raises:
            OutOfFrames: fewer are free.
        """
        if count > len(self._free):
            raise OutOfFrames(count, len(self._free))
        frames = [heapq.heappop(self._free) for _ in range(count)]
        for pfn in frames:
            self.refcounts[pfn] = 1
            self.generations[pfn] += 1
        return frames

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
            heapq.heappush(self._free, pfn)

    def refcount(self, pfn: Pfn) -> int:
        """Count the references to a frame; 0: it is free."""
        return self.refcounts[pfn]

    def statistics(self) -> FrameStatistics:
        """Count. O(1)."""
        return FrameStatistics(num_frames=self.num_frames, num_free=len(self._free))

    def check_integrity(self) -> None:
        """Raise KernelPanic unless exactly the frames without references are free, each once. O(n)."""
        free = set(self._free)
        if len(free) != len(self._free):
            raise KernelPanic("a frame is free twice")
        for pfn, count in enumerate(self.refcounts):
            if count < 0 or (count == 0) != (pfn in free):
                raise KernelPanic(f"frame {pfn} has {count} references, free: {pfn in free}")
