"""Where a device's frames live, and how kernels address them: the page tables of all spaces.

An arena turns page-table edits into something that kernels index with `page_index(asid, vpn)`. Two kinds:

- `VirtualArena` (CPU): one reserved address range for each segment; the page of a space lies at a fixed
  place, base + (asid * pages_per_space + vpn) * frame_bytes, and an edit maps frames of a memfd there. A
  space's keys are contiguous for a kernel, whatever frames they are in, and sharing needs no copy.
- `TableArena` (any torch device): one tensor of frames; `page_index` looks the page up in a host table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import attrs
import torch

from drivers.ops.batch import ContiguousPages, PageIndex
from drivers.page_table import ArenaError, PageTable
from llmos.device import CopyPage, KVFormat, Map
from native.mapper import MapJob, PageMapper
from native.paging import MemoryPool, ReservedRange, count_mappings, mapping_limit

__all__ = ["Arena", "ArenaError", "MapCounts", "TableArena", "VirtualArena", "max_virtual_frames"]

SPARE_MAPPINGS = 4096  # for libraries, thread stacks and the allocator, beside what they have already


class Arena(Protocol):
    """The memory of one device, as its driver sees it."""

    kv: KVFormat
    num_frames: int
    pages_per_space: int

    @property
    def segments(self) -> tuple[torch.Tensor, ...]:
        """For each segment, flat uint8 that `page_index` counts frames in. Valid until close."""

    @property
    def page_index(self) -> PageIndex:
        """Where a mapped page (asid, vpn) lies in each of `segments`, in frames."""

    @property
    def memory(self) -> Any:
        """A writable buffer over all frames, by number, for copies; None: there is `TableArena.stage`."""

    def num_mapped_pages(self, asid: int) -> int:
        """How many pages of an open space are mapped without a gap from page 0 on."""

    def reserve(self, asid: int) -> None:
        """Open a space. Raises ArenaError."""

    def release(self, asid: int) -> None:
        """Close a space. Raises ArenaError."""

    def map(self, edit: Map) -> None:
        """Back a page, replacing what was there; one that is ahead of need perhaps only until `finish_maps`.

        Raises ArenaError, or OSError when the system refuses.
        """

    def finish_maps(self, asid: int, num_pages: int) -> None:
        """Have pages [0, num_pages) of a space mapped that were to be mapped ahead of need.

        Raises ArenaError, or OSError when the system refuses.
        """

    def copy_page(self, edit: CopyPage) -> None:
        """Copy frames. Raises ArenaError."""

    def close(self) -> None:
        """Give all memory back; `segments` must not be used any more. Idempotent."""


@attrs.frozen
class MapCounts:
    """Map edits that an arena has carried out since it was opened."""

    num_sync: int  # system calls that a step waited for
    num_ahead: int  # carried out beside steps
    num_reused: int  # the page was mapped to these frames already
    num_waits: int  # of those ahead, not done when a row needed them


@attrs.frozen
class _Ahead:
    """A page that is to be mapped when a row needs it."""

    edit: Map
    job: MapJob | None  # that maps it; None: there were too many mappings then


def max_virtual_frames(max_spaces: int, num_segments: int) -> int:
    """Frames that a VirtualArena can have mapped at once, when no two of them are adjacent.

    Linux lets a process have vm.max_map_count mappings (65530 by default). A mapped frame takes one, and so
    does the unmapped rest of each segment of each space.
    """
    return mapping_limit() - count_mappings() - SPARE_MAPPINGS - max_spaces * num_segments


class VirtualArena:
    """Frames of a memfd, mapped where kernels expect them. CPU only.

    Unmapping is lazy: a released space keeps its mappings until its next owner replaces them, or until the
    system's limit on mappings is near. In debug mode they go at once, so that a stale read is a crash.

    A frame that is mapped into many spaces takes a mapping in each; that can exceed the limit later on, and
    is then the ArenaError of one `map`, or, ahead of need, of the `finish_maps` of the row that needs it.

    A page that is mapped ahead of need is mapped and populated by a thread of its own. Nobody else touches
    it meanwhile: rows do not reach it before `finish_maps`, and whoever maps or unmaps it first waits.

    Args:
        kv: format; frame_bytes is a multiple of the system's page size.
        num_frames: physical frames.
        max_spaces: asids are below it.
        pages_per_space: enough for the longest context.
        debug: unmap eagerly.

    Raises:
        ArenaError: the frames could exceed the system's limit on mappings.
        OSError: the system refuses the memory or the addresses.
    """

    def __init__(
        self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int, *, debug: bool = False
    ) -> None:
        self.kv = kv
        self.num_frames = num_frames
        self.pages_per_space = pages_per_space
        self.page_index = ContiguousPages(pages_per_space)
        self.table = PageTable(kv, num_frames, max_spaces, pages_per_space)
        self._debug = debug
        # the process may have mapped more since its frames were counted: half of what was spared is for that
        self._max_mapped = max_virtual_frames(max_spaces, len(kv.segments)) + SPARE_MAPPINGS // 2
        # More than all slots of all spaces cannot be mapped, however many frames there are.
        if min(num_frames, len(kv.segments) * max_spaces * pages_per_space) > self._max_mapped:
            raise ArenaError(
                f"{num_frames} frames of {kv.frame_bytes} bytes in {max_spaces} spaces need more mappings "
                f"than vm.max_map_count ({mapping_limit()}); take larger frames, a smaller pool, or raise it"
            )
        self._pages_per_segment = max_spaces * pages_per_space
        # For each space, what its pages are mapped to, by itself or by who had it before; None: not known.
        self._mapped: list[list[tuple[int, ...] | None]] = [[] for _ in range(max_spaces)]
        self._num_mapped = 0  # pages in these lists, in all segments
        self._ahead: dict[int, dict[int, _Ahead]] = {}  # by asid and vpn; what no row has needed yet
        self._num_sync = self._num_ahead = self._num_reused = self._num_waits = 0
        self._pool = MemoryPool(num_frames, kv.frame_bytes)
        try:
            self._range = ReservedRange(self._pool, self._pages_per_segment * len(kv.segments))
            try:
                self._mapper = PageMapper(self._range)
            except BaseException:
                self._range.close()
                raise
        except BaseException:
            self._pool.close()
            raise
        whole = torch.frombuffer(self._range.buffer(), dtype=torch.uint8)
        self._segments = whole.chunk(len(kv.segments))

    @property
    def segments(self) -> tuple[torch.Tensor, ...]:
        """See Arena."""
        return self._segments

    @property
    def memory(self) -> Any:
        """See Arena: the direct map of the pool."""
        return self._pool.buffer()

    @property
    def num_mappings(self) -> int:
        """Page slots that hold a mapping, or may: those of released spaces count until they are unmapped."""
        return self._num_mapped

    def num_mapped_pages(self, asid: int) -> int:
        """See Arena."""
        return self.table.num_mapped_pages(asid)

    def reserve(self, asid: int) -> None:
        """See Arena."""
        self.table.reserve(asid)

    def release(self, asid: int) -> None:
        """See Arena."""
        self.table.release(asid)
        for vpn in list(self._ahead.get(asid, ())):
            self._forget_ahead(asid, vpn)
        if self._debug:
            self._unmap(asid)

    def map(self, edit: Map) -> None:
        """See Arena."""
        self.table.check_map(edit)
        self._forget_ahead(edit.asid, edit.vpn)
        mapped = self._mapped[edit.asid]
        if edit.vpn < len(mapped) and mapped[edit.vpn] == edit.pfns:
            self._num_reused += 1
        elif edit.is_ahead:
            self._begin_map(edit)
        else:
            self._map_now(edit)
        self.table.map(edit)

    def finish_maps(self, asid: int, num_pages: int) -> None:
        """See Arena."""
        pages = self._ahead.get(asid)
        if not pages:
            return
        for vpn in [vpn for vpn in pages if vpn < num_pages]:
            ahead = pages[vpn]
            if ahead.job is None or not self._wait(ahead):
                self._map_now(ahead.edit)  # there may be room again; if not, the page stays to be mapped
            del pages[vpn]

    def counts(self) -> MapCounts:
        """How often pages were mapped, and how."""
        return MapCounts(self._num_sync, self._num_ahead, self._num_reused, self._num_waits)

    def copy_page(self, edit: CopyPage) -> None:
        """See Arena."""
        self.table.check_copy(edit)
        self._pool.copy_frames(edit.sources, edit.targets)

    def close(self) -> None:
        """See Arena."""
        self._segments = ()
        self._mapper.close()
        self._range.close()
        self._pool.close()

    def _begin_map(self, edit: Map) -> None:
        """Let the mapper map a page."""
        job = None
        try:
            self._make_room(edit)
        except ArenaError:
            pass  # by the time that a row needs it there may be room
        else:
            job = self._mapper.submit(self._slots(edit), edit.pfns)
            self._mapped[edit.asid][edit.vpn] = edit.pfns
        self._ahead.setdefault(edit.asid, {})[edit.vpn] = _Ahead(edit, job)
        self._num_ahead += 1

    def _map_now(self, edit: Map) -> None:
        self._make_room(edit)
        self._range.map_frames(self._slots(edit), edit.pfns)
        self._mapped[edit.asid][edit.vpn] = edit.pfns
        self._num_sync += 1

    def _slots(self, edit: Map) -> list[int]:
        """Where in the range a page's segments lie."""
        page = self.page_index(edit.asid, edit.vpn)
        return [page + segment * self._pages_per_segment for segment in range(len(edit.pfns))]

    def _make_room(self, edit: Map) -> None:
        """Count one more mapped page where it is one, and forget what it was mapped to. Raises ArenaError."""
        mapped = self._mapped[edit.asid]
        new_pages = max(0, edit.vpn + 1 - len(mapped))
        num_new = new_pages * len(self._segments)
        if self._num_mapped + num_new > self._max_mapped:
            self._unmap_released()
            if self._num_mapped + num_new > self._max_mapped:
                raise ArenaError(
                    f"{self._num_mapped} frames are mapped; vm.max_map_count ({mapping_limit()}) is the limit"
                )
        mapped += [None] * new_pages
        self._num_mapped += num_new
        mapped[edit.vpn] = None

    def _forget_ahead(self, asid: int, vpn: int) -> None:
        """A page will be mapped anew, or its space is gone: nobody is left who maps it."""
        pages = self._ahead.get(asid)
        if not pages or vpn not in pages:
            return
        ahead = pages.pop(vpn)
        if ahead.job is not None:
            self._wait(ahead)

    def _wait(self, ahead: _Ahead) -> bool:
        """Let the mapper come to an end with a page; False: the system refused it."""
        assert ahead.job is not None
        try:
            self._num_waits += self._mapper.wait(ahead.job)
        except OSError:
            self._mapped[ahead.edit.asid][ahead.edit.vpn] = None
            return False
        return True

    def _unmap_released(self) -> None:
        for asid, mapped in enumerate(self._mapped):
            if mapped and not self.table.is_open(asid):
                self._unmap(asid)

    def _unmap(self, asid: int) -> None:
        if count := len(self._mapped[asid]):
            for segment in range(len(self._segments)):
                self._range.unmap_pages(self.page_index(asid, 0) + segment * self._pages_per_segment, count)
            self._mapped[asid] = []
            self._num_mapped -= count * len(self._segments)


class TableArena:
    """Frames of one tensor, found through a table. Any torch device.

    The frames of a page are stored side by side as one slot, the same in every segment, because kernels use
    one index for all segments. A slot is taken when frames are first seen together, and is free again when
    one of them is seen in other company: then the kernel has given that page up.

    A frame that is copied in from another tier arrives before anybody says in which company it will be seen.
    Until then it waits beside the slots.

    Args:
        kv: format.
        num_frames: physical frames.
        max_spaces: asids are below it.
        pages_per_space: enough for the longest context.
        device: where the tensor lies.

    Raises:
        torch.OutOfMemoryError: the device has too little memory.
    """

    def __init__(
        self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int, device: torch.device | str
    ) -> None:
        self.kv = kv
        self.num_frames = num_frames
        self.pages_per_space = pages_per_space
        self.table = PageTable(kv, num_frames, max_spaces, pages_per_space)
        num_slots = num_frames // kv.frames_per_page
        self._slots = torch.zeros(
            (kv.frames_per_page, num_slots, kv.frame_bytes), dtype=torch.uint8, device=device
        )
        self._free = list(range(num_slots))[::-1]
        self._slot_of: dict[tuple[int, ...], int] = {}
        self._company: dict[int, tuple[int, ...]] = {}  # the frames that each frame was last seen with
        self._arrived: dict[int, torch.Tensor] = {}  # frames that were copied in, and not seen since
        self.memory = None

    @property
    def segments(self) -> tuple[torch.Tensor, ...]:
        """See Arena."""
        return tuple(segment.view(-1) for segment in self._slots)

    def page_index(self, asid: int, vpn: int) -> int:
        """See Arena: a look-up."""
        return self._slot_of[self.table.frames(asid, vpn)]

    def num_mapped_pages(self, asid: int) -> int:
        """See Arena."""
        return self.table.num_mapped_pages(asid)

    def reserve(self, asid: int) -> None:
        """See Arena."""
        self.table.reserve(asid)

    def release(self, asid: int) -> None:
        """See Arena."""
        self.table.release(asid)

    def map(self, edit: Map) -> None:
        """See Arena."""
        self.table.check_map(edit)
        self._slot(edit.pfns)
        self.table.map(edit)

    def finish_maps(self, asid: int, num_pages: int) -> None:
        """See Arena. A page is found through the table as soon as it is entered there."""

    def copy_page(self, edit: CopyPage) -> None:
        """See Arena."""
        self.table.check_copy(edit)
        source, target = self._slot(edit.sources), self._slot(edit.targets)
        self._slots[:, target].copy_(self._slots[:, source])

    def stage(self, num_frames: int) -> memoryview:
        """Main memory for frames on their way, that the device can reach directly."""
        is_pinned = self._slots.device.type == "cuda"
        staged = torch.empty(num_frames * self.kv.frame_bytes, dtype=torch.uint8, pin_memory=is_pinned)
        return memoryview(staged.numpy())

    def read_frames(self, pfns: Sequence[int], staged: memoryview) -> None:
        """Copy frames out, one behind the other. Blocks."""
        for pfn, to in zip(pfns, self._staged_frames(staged), strict=True):
            if (arrived := self._arrived.get(pfn)) is not None:
                to.copy_(arrived)
            elif (company := self._company.get(pfn)) is not None:
                to.copy_(self._slots[company.index(pfn), self._slot_of[company]])
            else:
                to.zero_()  # nobody has written to it

    def write_frames(self, pfns: Sequence[int], staged: memoryview) -> None:
        """Copy frames in. Blocks."""
        for pfn, data in zip(pfns, self._staged_frames(staged), strict=True):
            self._arrived[pfn] = data.to(self._slots.device, copy=True)

    def close(self) -> None:
        """See Arena."""
        self._slots = torch.empty((0, 0, 0), dtype=torch.uint8)
        self._arrived.clear()

    def _staged_frames(self, staged: memoryview) -> tuple[torch.Tensor, ...]:
        return torch.frombuffer(staged, dtype=torch.uint8).split(self.kv.frame_bytes)

    def _slot(self, pfns: tuple[int, ...]) -> int:
        """Where the frames of a page lie side by side."""
        slot = self._find_slot(pfns)
        for segment, pfn in enumerate(pfns):
            if (arrived := self._arrived.pop(pfn, None)) is not None:
                self._slots[segment, slot] = arrived
        return slot

    def _find_slot(self, pfns: tuple[int, ...]) -> int:
        if (slot := self._slot_of.get(pfns)) is not None:
            return slot
        for pfn in pfns:
            if (company := self._company.get(pfn)) is not None:
                self._free.append(self._slot_of.pop(company))
                for other in company:
                    del self._company[other]
        slot = self._slot_of[pfns] = self._free.pop()
        self._company.update(dict.fromkeys(pfns, pfns))
        return slot
