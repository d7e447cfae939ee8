"""Where the frames come from that a space asks for: what is given up for them, and in which order."""

from __future__ import annotations

from attrs import define

from llmos.errors import OutOfFrames
from llmos.mm.address_space import AddressSpace
from llmos.mm.frame import FramePool
from llmos.mm.mapper import Mapper
from llmos.mm.prefix import PrefixIndex


@define(eq=False)
class FrameSupply:
    """Free frames first, then those that others have mapped ahead of need, then those of the prefix index.

    Args:
        pool: of all frames.
        mapper: has pages mapped ahead.
        index: keeps pages for processes to come.
        frames_per_page: frames behind one page.
    """

    pool: FramePool
    mapper: Mapper
    index: PrefixIndex
    frames_per_page: int

    @property
    def num_free(self) -> int:
        """Frames that nobody needs, those that are mapped ahead among them."""
        return self.pool.num_free + self.mapper.num_ahead_frames

    @property
    def num_allocatable(self) -> int:
        """Frames that can be had: nobody needs them, or only the prefix index keeps them."""
        return self.pool.num_free + self.mapper.num_ahead_frames + self.index.num_idle_frames

    def make_free(self, num_pages: int, space: AddressSpace, num_ahead: int = 0) -> None:
        """Have frames free for pages of a space, `num_ahead` of which it has already, mapped ahead.

        Raises:
            OutOfFrames: there are too few of all kinds; nothing was changed.
        """
        num_frames = num_pages * self.frames_per_page
        if num_frames > self.num_allocatable:
            raise OutOfFrames(num_frames, self.num_allocatable)
        num_frames -= num_ahead * self.frames_per_page
        if num_frames > self.pool.num_free:
            self.mapper.reclaim(num_frames - self.pool.num_free, space, num_ahead)
        if num_frames > self.pool.num_free:
            self.index.evict(num_frames - self.pool.num_free)

    def map_ahead(self, space: AddressSpace, num_pages: int) -> None:
        """Map pages that a space will write in a few steps, `num_pages` with those that it has.

        In the long run the cache fills every frame, so something would be evicted for these pages in any
        case, only later and with a step waiting for it. But they are only likely to be needed: what somebody
        has pinned does not go for them.
        """
        wanted = min(num_pages, space.max_pages) - space.num_pages - len(space.ahead)
        missing = wanted * self.frames_per_page - self.pool.num_free
        if wanted > 0 and missing > 0:
            self.index.evict(missing, spare_pinned=True)
        self.mapper.extend(space, num_pages)
