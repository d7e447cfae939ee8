"""Page tables: which frames are behind each virtual page of one address space."""

from __future__ import annotations

from typing import NamedTuple

from attrs import define, field

from llmos.device import Pfn, Vpn
from llmos.errors import KernelPanic

# The frames of one page, one for each segment. They are allocated, shared and freed together, so the
# reference count of the first is that of all.
PageFrames = tuple[Pfn, ...]


class Translation(NamedTuple):
    """Where a token's keys and values are: a slot of a frame in each segment."""

    frames: PageFrames
    slot: int


@define(eq=False)
class PageTable:
    """Virtual pages 0 … len - 1, without holes: keys and values are appended and cut off at the end only.

    Args:
        tokens_per_page: positions that one page holds.
    """

    tokens_per_page: int
    entries: list[PageFrames] = field(init=False, factory=list)  # by vpn; written by this class only

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def num_token_slots(self) -> int:
        """Positions that are backed: [0, num_token_slots)."""
        return len(self.entries) * self.tokens_per_page

    def map(self, vpn: Vpn, frames: PageFrames) -> None:
        """Put frames behind a page: an existing one, or the next one. Raises KernelPanic on a hole."""
        if vpn < len(self.entries):
            self.entries[vpn] = frames
        elif vpn == len(self.entries):
            self.entries.append(frames)
        else:
            raise KernelPanic(f"page {vpn} is mapped after {len(self.entries)} pages")

    def translate(self, position: int) -> Translation:
        """Find a token. Raises KernelPanic when its page is not mapped."""
        vpn, slot = divmod(position, self.tokens_per_page)
        if not 0 <= vpn < len(self.entries):
            raise KernelPanic(f"position {position} is not mapped; {len(self.entries)} pages are")
        return Translation(self.entries[vpn], slot)

    def truncate(self, num_pages: int) -> list[PageFrames]:
        """Cut off the pages from `num_pages` on, and return what was behind them, in order."""
        dropped = self.entries[num_pages:]
        del self.entries[num_pages:]
        return dropped
