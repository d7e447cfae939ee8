"""Page tables: which frames are behind each virtual page of one address space."""

from __future__ import annotations

from attrs import define, field

from llmos.device import Pfn, Vpn
from llmos.errors import KernelPanic

# The frames of one page, one for each segment. They are allocated, shared and freed together, so the
# reference count of the first is that of all.
PageFrames = tuple[Pfn, ...]


@define(eq=False)
class PageTable:
    """Virtual pages 0 … len - 1, without holes. Serving term: block table.

    Args:
        tokens_per_page: positions that one page holds.
    """

    tokens_per_page: int
    entries: list[PageFrames] = field(init=False, factory=list)  # by vpn; written by this class only

    def __len__(self) -> int:
        return len(self.entries)

    def map(self, vpn: Vpn, frames: PageFrames) -> None:
        """Put frames behind a page: an existing one, or the next one. Raises KernelPanic on a hole."""
        if vpn < len(self.entries):
            self.entries[vpn] = frames
        elif vpn == len(self.entries):
            self.entries.append(frames)
        else:
            raise KernelPanic(f"page {vpn} is mapped after {len(self.entries)} pages")

    def clear(self) -> list[PageFrames]:
        """Unmap every page, and return what was behind them, in order."""
        pages = self.entries[:]
        self.entries.clear()  # the list stays: others have it
        return pages
