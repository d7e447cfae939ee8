"""The virtual memory manager of one device: spaces, sharing, and the edits they need.

It decides; the device carries out. Each change of a page table is queued as an edit that rides on the next
step, before its rows. The device works in order, so a frame that is given back here may be handed out again
at once: whoever writes it next does so after every step that could still read it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from attrs import frozen

from llmos.device import Edit, KVFormat, MapWork
from llmos.errors import KernelPanic
from llmos.mm.address_space import AddressSpace
from llmos.mm.edit_queue import EditQueue
from llmos.mm.eviction import CostAware, Eviction
from llmos.mm.frame import FramePool
from llmos.mm.frame_supply import FrameSupply
from llmos.mm.free_asids import FreeAsids
from llmos.mm.mapper import Mapper, MappingMode, MapStatistics
from llmos.mm.page_table import PageFrames
from llmos.mm.pager import Pager
from llmos.mm.pins import Pins
from llmos.mm.prefix import PrefixIndex, PrefixStatistics
from llmos.mm.references import PageReferences
from llmos.mm.space_table import SpaceTable, check_open


@frozen
class VmmStatistics:
    """Memory of one device at one moment; the counters count since the VMM was made."""

    num_frames: int
    num_free: int  # nobody needs them; those mapped ahead of need among them
    num_cached: int  # only the prefix index refers to them: given up when frames are short
    num_spaces: int
    num_copies: int  # pages copied on write
    num_tail_copies: int  # pages copied for the tokens that they begin with
    num_ahead: int  # of the free ones, mapped where some space will need them next
    maps: MapStatistics
    prefix: PrefixStatistics


class VMM:
    """Owns the frames, address spaces and prefix index of one device; its `pager` backs spaces as they grow.

    Args:
        kv: the number format of the loaded model.
        num_frames: physical frames of the device.
        max_spaces: how many spaces may be open at once; asids are below it.
        max_model_len: positions of the longest space.
        prefix_cache: keep the pages of closed spaces for others.
        eviction: which of them go first when frames are short; None: by what they cost to compute again.
        mapping: when pages are mapped, see Mapper.
        map_reuse: give a space the asid and the frames that are mapped as it needs them; False, to compare.
        max_pinned_bytes: of the prefix index, for each tenant; None: a quarter of the device's frames.
        clock: seconds, for pins to end by.
    """

    def __init__(
        self,
        kv: KVFormat,
        num_frames: int,
        max_spaces: int,
        max_model_len: int,
        prefix_cache: bool = True,
        eviction: Eviction | None = None,
        mapping: MappingMode = "ahead",
        map_reuse: bool = True,
        max_pinned_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_spaces < 1:
            raise ValueError(f"a device has at least 1 address space, not {max_spaces}")
        self.kv = kv
        self.max_model_len = max_model_len
        self.prefix_cache = prefix_cache
        self._pool = FramePool(num_frames)
        if max_pinned_bytes is None:
            max_pinned_bytes = num_frames * kv.frame_bytes // 4
        pins = Pins(clock, max_pinned_bytes // kv.page_bytes)
        self._index = PrefixIndex(
            self._pool, kv.tokens_per_page, kv.frames_per_page, pins, eviction or CostAware()
        )
        self.references = PageReferences(self._pool, self._index)
        self._edits = EditQueue()
        self._spaces = SpaceTable(
            kv, max_model_len, self._pool, self._edits, FreeAsids(max_spaces, map_reuse)
        )
        self._mapper = Mapper(self._pool, self._edits, kv.frames_per_page, mapping, map_reuse)
        self._supply = FrameSupply(self._pool, self._mapper, self._index, kv.frames_per_page)
        self.pager = Pager(
            kv, max_model_len, self._pool.refcounts, self.references, self._edits, self._mapper, self._supply
        )

    # --- spaces come and go ------------------------------------------------------------------------------

    def open_space(self, salt: str, tokens: Sequence[int] = ()) -> AddressSpace:
        """Open an empty space.

        Args:
            salt: only spaces with equal salts share pages through the prefix index.
            tokens: of the prompt, where it is known: the space then gets the asid under which the device has
                most of what it needs mapped already.

        Raises:
            OutOfSpaces: max_spaces are open.
        """
        shared = self._index.peek(salt, tokens[:-1]) if self.prefix_cache and tokens else ()
        return self._open(salt, shared, self.kv.num_pages(len(tokens) + 1))

    def _open(self, salt: str, shared: Sequence[PageFrames], num_pages: int) -> AddressSpace:
        space = self._spaces.open(salt, shared, num_pages)
        space.ahead_tokens = self._mapper.ahead_tokens(space.asid)
        return space

    def fork_space(self, parent: AddressSpace, num_tokens: int, salt: str) -> AddressSpace:
        """Open a space that starts with the pages of another one, copy-on-write.

        Whichever of the two writes to a shared page first gets a copy of it. What the parent has yet to
        write, steps in flight included, must lie at `num_tokens` or after it.

        Args:
            parent: has at least `num_tokens` positions mapped.
            num_tokens: positions of the parent that the child keeps.
            salt: of the child.

        Raises:
            OutOfSpaces: max_spaces are open.
        """
        check_open(parent)
        num_pages = self.kv.num_pages(num_tokens)
        if num_pages > parent.num_pages:
            raise KernelPanic(f"{num_tokens} tokens are forked from a space of {parent.num_pages} pages")
        pages = parent.page_table.entries[:num_pages]
        child = self._open(salt, pages, num_pages)
        self.pager.share(child, pages)
        return child

    def close_space(self, space: AddressSpace, tokens: Sequence[int] = (), pin_seconds: float = 0.0) -> None:
        """Close a space and give its frames back. Mutates the space: it cannot be used any more.

        Args:
            space: open.
            tokens: ids at positions 0, 1, … that the device has computed, or will have before the next step
                is carried out. Their pages go to the prefix index; empty: nothing is kept.
            pin_seconds: for so long they outlast those of others there.
        """
        check_open(space)
        self._mapper.drop(space)
        pages = space.page_table.clear()
        landmarks: tuple[PageFrames, ...] = ()
        if self.prefix_cache and tokens:
            self._index.insert(space.salt, tokens, pages)
            if pin_seconds > 0:
                self._index.pin(space.salt, tokens, pin_seconds)
            num_full = min(len(tokens) // self.kv.tokens_per_page, len(pages))
            landmarks = tuple(dict.fromkeys(pages[:num_full][:: max(1, num_full - 1)]))
        self.references.release(pages)
        self._spaces.close(space, pages, landmarks)

    def reset(self) -> None:
        """The device lost its memory: forget all of it, queued edits too. Open spaces become unusable."""
        self._spaces.reset()
        self._pool.reset()
        self._index.reset()
        self.references.reset()
        self._mapper.reset()
        self._edits.clear()

    # --- the prefix index --------------------------------------------------------------------------------

    def attach_prefix(self, space: AddressSpace, tokens: Sequence[int], limit: int, has: int = 0) -> int:
        """Map what others have computed for the same first tokens into an empty space.

        Whole pages are shared; where the tokens part inside a page, its first ones are copied.

        Args:
            space: open, with nothing mapped.
            tokens: ids of the prompt.
            limit: cover at most so many tokens: the caller leaves at least one to compute.
            has: tokens that the caller can get in another way: no page is copied for those.

        Returns:
            How many tokens are covered; they need not be computed.
        """
        check_open(space)
        if space.num_pages:
            raise KernelPanic(f"a prefix for space {space.asid}, which has {space.num_pages} pages")
        if not self.prefix_cache:
            return 0
        found = self._index.match(space.salt, tokens, limit)
        self.pager.append(space, found.pages)
        covered = len(found.pages) * self.kv.tokens_per_page
        if found.tail is None:
            return covered
        with_tail = covered + found.num_tail_tokens
        if with_tail > has and self.pager.append_copy(space, found.tail):
            covered = with_tail  # without a frame for the copy it computes those tokens instead
        self.references.release((found.tail,))
        return covered

    def drop_cache(self, is_meant: Callable[[str], bool]) -> Iterator[int]:
        """Give up the pages of the prefix index that nobody maps, piece by piece.

        Args:
            is_meant: asked for the salt that a page is found under.

        Yields:
            How many pages each piece gave up. Steps may be planned between two of them.
        """
        return self._index.drop(is_meant)

    # --- the device's side -------------------------------------------------------------------------------

    def take_edits(self) -> tuple[Edit, ...]:
        """Drain the queued edits, in the order in which the device must carry them out."""
        return self._edits.take()

    @property
    def has_page_copies(self) -> bool:
        """Is a page copied by one of the queued edits?"""
        return self._edits.has_page_copies

    def note_map_work(self, work: MapWork) -> None:
        """Count what the device says it did to map pages for one step."""
        self._mapper.note_work(work)

    # --- looking -----------------------------------------------------------------------------------------

    def resident_bytes(self, space: AddressSpace) -> int:
        """Bytes of physical memory behind a space."""
        return len(space.page_table.entries) * self.kv.page_bytes

    def shared_bytes(self, space: AddressSpace) -> int:
        """Of the resident bytes, those that others refer to as well. O(pages)."""
        entries = space.page_table.entries
        return sum(self.refcounts[frames[0]] > 1 for frames in entries) * self.kv.page_bytes

    @property
    def refcounts(self) -> Sequence[int]:
        """References to each frame; to be read, never written."""
        return self._pool.refcounts

    def cached_pages(self) -> Iterator[tuple[str, PageFrames]]:
        """Pages of the prefix index, in use or not, each with the salt that it is found under."""
        return self._index.pages()

    def pinned_bytes(self, tenant: str) -> int:
        """Of the prefix index, in use or not, what a tenant has pinned."""
        return self._index.num_pinned_pages_of(tenant) * self.kv.page_bytes

    @property
    def num_frames(self) -> int:
        """Physical frames of the device."""
        return self._pool.num_frames

    @property
    def num_free_spaces(self) -> int:
        """Spaces that may still be opened."""
        return len(self._spaces.free)

    @property
    def num_allocatable_frames(self) -> int:
        """Frames that can be had: nobody needs them, or only the prefix index keeps them."""
        return self._supply.num_allocatable

    def statistics(self) -> VmmStatistics:
        """Count. O(1)."""
        return VmmStatistics(
            num_frames=self._pool.num_frames,
            num_free=self._supply.num_free,
            num_cached=self._index.num_idle_frames,
            num_spaces=len(self._spaces),
            num_copies=self.pager.num_copies,
            num_tail_copies=self.pager.num_tail_copies,
            num_ahead=self._mapper.num_ahead_frames,
            maps=self._mapper.statistics(),
            prefix=self._index.statistics(),
        )

    def check_integrity(self) -> None:
        """Raise KernelPanic unless every reference to every frame is accounted for. O(frames)."""
        self._pool.check_integrity()
        self._index.check_integrity()
        self._spaces.check_integrity()
        self._mapper.check_integrity(list(self._spaces))
        self.references.check_integrity(self._spaces)
