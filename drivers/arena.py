"""Where a device's frames live, and how kernels address them: what every driver's memory promises.

An arena turns page-table edits into something that kernels index with `page_index(asid, vpn)`. See
`virtual_arena.py` for how, `host_arena.py` and `cuda_arena.py` for the two kinds of memory behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch

from drivers.ops.batch import PageIndex
from drivers.page_table import ArenaError
from llmos.device import CopyPage, KVFormat, Map, MapWork
from native.cuda.copier import CudaCopier

__all__ = ["Arena", "ArenaError"]


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
        """A writable buffer over all frames, by number, for copies; None: there is `open_copier`."""

    def open_copier(self) -> CudaCopier | None:
        """What copies frames that the host cannot touch; close it before the arena. None: there is `memory`.

        Raises OSError.
        """

    def num_mapped_pages(self, asid: int) -> int:
        """How many pages of an open space are mapped without a gap from page 0 on."""

    def reserve(self, asid: int) -> None:
        """Open a space. Raises ArenaError."""

    def release(self, asid: int) -> None:
        """Close a space. Raises ArenaError."""

    def map(self, edit: Map) -> None:
        """Back a page with frames, replacing what was there. Ahead of need that may wait until `finish_maps`.

        Raises ArenaError, or OSError when the system refuses.
        """

    def finish_maps(self, asid: int, num_pages: int) -> None:
        """Make sure that pages [0, num_pages) of a space are mapped, also those that are so ahead of need.

        Raises ArenaError, or OSError when the system refuses.
        """

    def copy_page(self, edit: CopyPage) -> None:
        """Copy frames. Raises ArenaError."""

    def mark_step(self, asids: Iterable[int]) -> None:
        """A step with rows of these spaces was launched: their pages stay mapped until it is over."""

    def take_map_work(self) -> MapWork | None:
        """What was mapped and unmapped since this was last called; None: nothing."""

    def close(self) -> None:
        """Give all memory back; `segments` must not be used any more. Idempotent."""
