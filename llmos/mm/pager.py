"""The pager: backs the positions of open spaces with frames that their processes may write."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from llmos.device import KVFormat
from llmos.errors import KernelPanic, OutOfFrames
from llmos.mm.address_space import AddressSpace
from llmos.mm.edit_queue import EditQueue
from llmos.mm.frame_supply import FrameSupply
from llmos.mm.mapper import Mapper
from llmos.mm.page_table import PageFrames
from llmos.mm.references import PageReferences
from llmos.mm.space_table import check_open


@define(eq=False)
class Pager:
    """Maps pages into spaces as they grow, and copies shared ones before they are written.

    Args:
        kv: the number format of the loaded model.
        max_model_len: positions of the longest space.
        refcounts: references to each frame, by its number; read only.
        references: to whole pages.
        edits: where copies of pages are queued.
        mapper: takes frames, and has the device told.
        supply: what is given up when frames are short.
    """

    kv: KVFormat
    max_model_len: int
    refcounts: Sequence[int]
    references: PageReferences
    edits: EditQueue
    mapper: Mapper
    supply: FrameSupply
    num_copies: int = field(init=False, default=0)  # pages copied on write
    num_tail_copies: int = field(init=False, default=0)  # pages copied for the tokens that they begin with
    _tokens_per_page: int = field(init=False)  # at hand for `grow`, which every row of every step calls

    def __attrs_post_init__(self) -> None:
        self._tokens_per_page = self.kv.tokens_per_page

    def grow(self, space: AddressSpace, start: int, end: int) -> None:
        """Make positions [start, end) writable: mapped, and shared with nobody. All or nothing.

        To write at `start` is to give up what was at `start` and after it: a shared page that begins before
        `start` is copied, later ones are replaced by new frames. Takes about 1 µs when nothing is to do.

        Args:
            space: open, with every position before `start` mapped.
            start: first position that will be written.
            end: one past the last.

        Raises:
            OutOfFrames: too few are free or only cached; nothing was changed.
        """
        tokens_per_page = self._tokens_per_page
        entries = space.page_table.entries
        first = start // tokens_per_page
        page_end = (first + 1) * tokens_per_page
        # The usual case, a decode token that stays in its page.
        if (
            end <= page_end
            and first < len(entries)
            and self.refcounts[entries[first][0]] == 1
            and space.is_open
            and end <= self.max_model_len
        ):
            if end > page_end - space.ahead_tokens and not space.ahead and first + 1 == len(entries):
                self.supply.map_ahead(space, first + 2)
            return
        check_open(space)
        if not 0 <= start <= len(entries) * tokens_per_page or end > self.max_model_len:
            raise KernelPanic(
                f"space {space.asid} with {len(entries)} pages of {tokens_per_page} tokens cannot grow to "
                f"[{start}, {end}); the limit is {self.max_model_len}"
            )
        if end <= start:
            return
        vpns = self._pages_to_back(space, start, end)
        num_ahead = min(len(space.ahead), sum(vpn >= len(entries) for vpn in vpns))
        self.supply.make_free(len(vpns), space, num_ahead)
        for _ in range(num_ahead):
            self.mapper.use(space)
        vpns = [vpn for vpn in vpns if vpn not in range(len(entries) - num_ahead, len(entries))]
        for vpn, new in zip(vpns, self.mapper.take(space, vpns), strict=True):
            if vpn < len(entries):
                old = entries[vpn]
                if vpn == first and start % tokens_per_page:
                    self.edits.copy_page(old, new)
                    self.num_copies += 1
                self.references.release((old,))
            self.mapper.map(space, vpn, new)
        if end > len(entries) * tokens_per_page - space.ahead_tokens:
            self.supply.map_ahead(space, len(entries) + 1)

    def frames_needed(self, space: AddressSpace, start: int, end: int) -> int:
        """Count the frames that `grow` with these arguments would take; 0 when nothing is to do."""
        return len(self._pages_to_back(space, start, end)) * self.kv.frames_per_page

    def _pages_to_back(self, space: AddressSpace, start: int, end: int) -> list[int]:
        """Pages of [start, end) that need new frames, in order: not mapped, or shared."""
        if end <= start:
            return []
        entries, refcounts = space.page_table.entries, self.refcounts
        first, stop = start // self._tokens_per_page, self.kv.num_pages(end)
        shared = [vpn for vpn in range(first, min(stop, len(entries))) if refcounts[entries[vpn][0]] > 1]
        return [*shared, *range(len(entries), stop)]

    def map_ahead(self, space: AddressSpace, end: int) -> None:
        """Map the pages of positions below `end` beside the step that runs, as far as frames are free.

        They are the space's when it grows into them, and given back when somebody else is short of frames.

        Args:
            space: open.
            end: one past the last position that it will probably write in the next step.
        """
        check_open(space)
        if space.ahead_tokens:
            self.supply.map_ahead(space, self.kv.num_pages(end))

    def share(self, space: AddressSpace, pages: Sequence[PageFrames]) -> None:
        """Map pages that somebody has, copy-on-write, behind those that a space has."""
        self.references.acquire(pages)
        self.append(space, pages)

    def append(self, space: AddressSpace, pages: Sequence[PageFrames]) -> None:
        """Map pages, whose references are the space's already, behind those that it has."""
        for frames in pages:
            self.mapper.map(space, space.num_pages, frames)

    def append_copy(self, space: AddressSpace, source: PageFrames) -> bool:
        """Map a copy of a page behind those that a space has; False: there is no frame for it."""
        try:
            self.supply.make_free(1, space)
        except OutOfFrames:
            return False
        own = self.mapper.take(space, [space.num_pages])
        self.edits.copy_page(source, own[0])
        self.append(space, own)
        self.num_tail_copies += 1
        return True
