"""The open address spaces of one device, and the identifiers that are left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import define, field

from llmos.device import Asid, KVFormat, Release, Reserve
from llmos.errors import KernelPanic
from llmos.mm.address_space import AddressSpace
from llmos.mm.edit_queue import EditQueue
from llmos.mm.frame import FramePool
from llmos.mm.free_asids import FreeAsids
from llmos.mm.page_table import PageFrames, PageTable


@define(eq=False)
class SpaceTable:
    """Opens spaces and closes them, and has the device told.

    Args:
        kv: of the loaded model.
        max_model_len: positions of the longest space.
        pool: says which frames are free.
        edits: where it queues its edits.
        free: the asids that nobody has.
    """

    kv: KVFormat
    max_model_len: int
    pool: FramePool
    edits: EditQueue
    free: FreeAsids
    _open: dict[Asid, AddressSpace] = field(init=False, factory=dict)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[AddressSpace]:
        return iter(self._open.values())

    def open(self, salt: str, shared: Sequence[PageFrames], num_pages: int) -> AddressSpace:
        """Open an empty space that will share some pages, and need `num_pages` before long.

        Raises:
            OutOfSpaces: all asids are taken.
        """
        free = self.free.take(shared, num_pages, self.pool)
        space = AddressSpace(
            asid=free.asid,
            salt=salt,
            max_pages=self.kv.num_pages(self.max_model_len),
            page_table=PageTable(self.kv.tokens_per_page),
            mappings=free.mappings,
        )
        self._open[space.asid] = space
        self.edits.put(Reserve(space.asid))
        return space

    def close(
        self, space: AddressSpace, pages: Sequence[PageFrames], landmarks: tuple[PageFrames, ...]
    ) -> None:
        """Close a space.

        Args:
            space: open.
            pages: that it had, and has released.
            landmarks: of these, those that its asid is found by.
        """
        space.is_open = False
        del self._open[space.asid]
        refcounts = self.pool.refcounts
        num_own = next((vpn for vpn, page in enumerate(pages) if refcounts[page[0]]), len(pages))
        self.free.give_back(space.asid, space.mappings, num_own, landmarks)
        self.edits.put(Release(space.asid))

    def reset(self) -> None:
        """The device lost its memory: no space can be used any more."""
        for space in self:
            space.is_open = False
        self._open.clear()
        self.free.reset()

    def check_integrity(self) -> None:
        """Raise KernelPanic unless each asid is free or has one space, which is as it should be."""
        for asid, space in self._open.items():
            if space.asid != asid or not space.is_open or space.num_pages > space.max_pages:
                raise KernelPanic(f"space {asid} is not what it should be: {space}")
        if sorted([*self.free, *self._open]) != list(range(self.free.max_spaces)):
            raise KernelPanic(f"asids do not add up: {len(self)} open, {len(self.free)} free")


def check_open(space: AddressSpace) -> None:
    """Raise KernelPanic when a space is used after it was closed."""
    if not space.is_open:
        raise KernelPanic(f"space {space.asid} is used after it was closed")
