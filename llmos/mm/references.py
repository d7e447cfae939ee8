"""Who refers to a page: spaces that map it, the prefix index that keeps it, copies that read or fill it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from attrs import define, field

from llmos.device import Pfn
from llmos.errors import KernelPanic
from llmos.mm.address_space import AddressSpace
from llmos.mm.frame import FramePool
from llmos.mm.page_table import PageFrames
from llmos.mm.prefix import PrefixIndex


@define(eq=False)
class PageReferences:
    """References to whole pages, all frames of a page at once.

    Args:
        pool: counts them, frame by frame.
        index: refers to its pages, and hears when somebody lets go of one.
    """

    pool: FramePool
    index: PrefixIndex
    _fences: Counter[PageFrames] = field(init=False, factory=Counter)  # of copies between tiers

    def reset(self) -> None:
        """The device lost its memory: nobody refers to anything."""
        self._fences.clear()

    def acquire(self, pages: Iterable[PageFrames]) -> None:
        """Add a reference to each of some pages that are in use."""
        for frames in pages:
            for pfn in frames:
                self.pool.acquire(pfn)

    def release(self, pages: Iterable[PageFrames]) -> None:
        """Take a reference to each page away; the last one frees its frames."""
        for frames in pages:
            for pfn in frames:
                self.pool.release(pfn)
            if self.pool.refcounts[frames[0]] == 1:  # the one left may be the index
                self.index.note_release(frames)

    def fence(self, pages: Iterable[PageFrames]) -> None:
        """Keep mapped pages as they are: while a copy reads them, or fills them, they have one user more.

        Who writes to a fenced page gets a copy of it first, and who gives it up does not free it.
        """
        for frames in pages:
            self._fences[frames] += 1
            self.acquire((frames,))

    def unfence(self, pages: Iterable[PageFrames]) -> None:
        """The copy has ended."""
        for frames in pages:
            self._fences[frames] -= 1
            if not self._fences[frames]:
                del self._fences[frames]
            self.release((frames,))

    def is_held(self, frames: PageFrames) -> bool:
        """Does anybody but the prefix index refer to a page?"""
        return self.pool.refcounts[frames[0]] > self.index.holds(frames)

    def is_only_fenced(self, frames: PageFrames) -> bool:
        """Will a page be free, or free to be evicted, when its copies have ended?"""
        return self.pool.refcounts[frames[0]] == self._fences[frames] + self.index.holds(frames)

    def generation(self, pfn: Pfn) -> int:
        """Which of its lives a frame is in: the number changes when it gets a new owner."""
        return self.pool.generations[pfn]

    def check_integrity(self, spaces: Iterable[AddressSpace]) -> None:
        """Raise KernelPanic unless every reference to every frame is accounted for. O(frames)."""
        held: Counter[Pfn] = Counter()
        for space in spaces:
            held.update(pfn for frames in (*space.page_table.entries, *space.ahead) for pfn in frames)
        for frames in (*self.index.frames(), *self._fences.elements()):
            held.update(frames)
        wrong = [pfn for pfn, count in enumerate(self.pool.refcounts) if held[Pfn(pfn)] != count]
        if wrong:
            raise KernelPanic(f"frames {wrong[:8]} have references that nobody holds, or too few")
