"""Pages at fixed virtual addresses, backed by frames on demand: what arenas on a CPU and on a GPU share.

One reserved range of addresses holds a part for each segment; the page of a space lies at a fixed place,
base + (asid * pages_per_space + vpn) * frame_bytes, and an edit maps frames there. A space's keys are
contiguous for a kernel, whatever frames they are in, and sharing needs no copy.

Source: Prabhu et al. 2024, "vAttention", arXiv:2405.04437.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import attrs
import torch

from drivers.ops.batch import ContiguousPages
from drivers.page_table import ArenaError, PageTable
from llmos.device import CopyPage, KVFormat, Map, MapWork

__all__ = ["VirtualArena"]


class _Pool(Protocol):
    """All frames."""

    def copy_frames(self, sources: Sequence[int], targets: Sequence[int]) -> None: ...

    def close(self) -> None: ...


class _Range(Protocol):
    """The pages of all spaces, in all segments."""

    def map_frames(self, pages: Sequence[int], pfns: Sequence[int]) -> None: ...

    def unmap_pages(self, first: int, count: int) -> None: ...

    def close(self) -> None: ...


class _Mapper(Protocol):
    """A thread that maps pages of the range."""

    def submit(self, pages: Sequence[int], pfns: Sequence[int]) -> Any: ...

    def wait(self, job: Any) -> bool: ...

    def close(self) -> None: ...


@attrs.frozen
class _Ahead:
    """A page that is to be mapped when a row needs it."""

    edit: Map
    job: Any | None  # that maps it; None: there were too many mappings then


class VirtualArena:
    """Frames, mapped where kernels expect them. Whoever derives from it opens pool, range and mapper.

    Unmapping is lazy: a released space keeps its mappings until its next owner replaces them, or until there
    is no room for more. In debug mode they go at once, so that a stale read is an error that shows.

    A page that is mapped ahead of need is mapped and populated by a thread of its own. Nobody else touches
    it meanwhile: rows do not reach it before `finish_maps`, and whoever maps or unmaps it first waits.

    Args:
        kv: format.
        num_frames: physical frames.
        max_spaces: asids are below it.
        pages_per_space: enough for the longest context.
        debug: unmap eagerly.
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
        self._pages_per_segment = max_spaces * pages_per_space
        # For each space, what its pages are mapped to, by itself or by who had it before; None: not known.
        self._mapped: list[list[tuple[int, ...] | None]] = [[] for _ in range(max_spaces)]
        self._num_mapped = 0  # pages in these lists, in all segments
        self._ahead: dict[int, dict[int, _Ahead]] = {}  # by asid and vpn; what no row has needed yet
        self._num_sync = self._num_ahead = self._num_reused = self._num_late = self._num_unmapped = 0
        self._wait_seconds = self._beside_seconds = 0.0
        self._told = MapWork()
        self._segments: tuple[torch.Tensor, ...] = ()
        self._pool: _Pool
        self._range: _Range
        self._mapper: _Mapper

    @property
    def num_pages(self) -> int:
        """Of the range: those of all spaces, in all segments."""
        return self._pages_per_segment * len(self.kv.segments)

    def use(self, pool: _Pool, place: _Range, mapper: _Mapper, whole: torch.Tensor) -> None:
        """Take memory over, to be closed with the arena; `whole` is all of the range, flat uint8."""
        self._pool, self._range, self._mapper = pool, place, mapper
        self._segments = whole.chunk(len(self.kv.segments))

    @property
    def segments(self) -> tuple[torch.Tensor, ...]:
        """See Arena."""
        return self._segments

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

    def map_work(self) -> MapWork:
        """What was mapped and unmapped since the arena was opened."""
        return MapWork(
            num_sync=self._num_sync,
            num_ahead=self._num_ahead,
            num_reused=self._num_reused,
            num_late=self._num_late,
            num_unmapped=self._num_unmapped,
            wait_seconds=self._wait_seconds,
            beside_seconds=self._beside_seconds,
        )

    def take_map_work(self) -> MapWork | None:
        """See Arena."""
        work, told = self.map_work(), self._told
        if work == told:
            return None
        self._told = work
        return work.minus(told)

    def copy_page(self, edit: CopyPage) -> None:
        """See Arena."""
        self.table.check_copy(edit)
        self._pool.copy_frames(edit.sources, edit.targets)

    def mark_step(self, asids: Iterable[int]) -> None:
        """See Arena. Where steps are over when they return, there is nothing to remember."""

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
        began = time.perf_counter()
        self._make_room(edit)
        self._range.map_frames(self._slots(edit), edit.pfns)
        self._mapped[edit.asid][edit.vpn] = edit.pfns
        self._num_sync += 1
        self._wait_seconds += time.perf_counter() - began

    def _slots(self, edit: Map) -> list[int]:
        """Where in the range a page's segments lie."""
        page = self.page_index(edit.asid, edit.vpn)
        return [page + segment * self._pages_per_segment for segment in range(len(edit.pfns))]

    def _make_room(self, edit: Map) -> None:
        """Count one more mapped page where it is one, and forget what it was mapped to. Raises ArenaError."""
        mapped = self._mapped[edit.asid]
        new_pages = max(0, edit.vpn + 1 - len(mapped))
        num_new = new_pages * len(self._segments)
        self._check_room(num_new)
        mapped += [None] * new_pages
        self._num_mapped += num_new
        mapped[edit.vpn] = None

    def _check_room(self, num_new: int) -> None:
        """Raise ArenaError when so many more pages cannot be mapped, whatever is unmapped for them."""

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
        began = time.perf_counter()
        try:
            is_late = self._mapper.wait(ahead.job)
        except OSError:
            self._mapped[ahead.edit.asid][ahead.edit.vpn] = None
            return False
        self._beside_seconds += ahead.job.seconds
        if is_late:
            self._num_late += 1
            self._wait_seconds += time.perf_counter() - began
        return True

    def _unmap(self, asid: int) -> None:
        if count := len(self._mapped[asid]):
            for segment in range(len(self._segments)):
                self._range.unmap_pages(self.page_index(asid, 0) + segment * self._pages_per_segment, count)
            self._num_unmapped += count
            self._mapped[asid] = []
            self._num_mapped -= count * len(self._segments)
