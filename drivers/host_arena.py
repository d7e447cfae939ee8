"""The frames of a CPU: a memfd, mapped where kernels expect them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from drivers.page_table import ArenaError
from drivers.virtual_arena import VirtualArena
from llmos.device import KVFormat
from native.mapper import PageMapper
from native.paging import MemoryPool, ReservedRange, count_mappings, mapping_limit

__all__ = ["HostArena", "max_virtual_frames"]

SPARE_MAPPINGS = 4096  # for libraries, thread stacks and the allocator, beside what they have already


def max_virtual_frames(max_spaces: int, num_segments: int) -> int:
    """Frames that a HostArena can have mapped at once, when no two of them are adjacent.

    Linux lets a process have vm.max_map_count mappings (65530 by default). A mapped frame takes one, and so
    does the unmapped rest of each segment of each space.
    """
    return mapping_limit() - count_mappings() - SPARE_MAPPINGS - max_spaces * num_segments


class HostArena(VirtualArena):
    """A `VirtualArena` of main memory.

    A frame that is mapped into many spaces takes a mapping in each; that can exceed the system's limit later
    on, and is then the ArenaError of one `map`, or, ahead of need, of the `finish_maps` of the row that needs
    it. Mappings of released spaces go when the limit is near.

    Args:
        kv: format; frame_bytes is a multiple of the system's page size.
        num_frames, max_spaces, pages_per_space, debug: see VirtualArena.

    Raises:
        ArenaError: the frames could exceed the system's limit on mappings.
        OSError: the system refuses the memory or the addresses.
    """

    def __init__(
        self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int, *, debug: bool = False
    ) -> None:
        super().__init__(kv, num_frames, max_spaces, pages_per_space, debug=debug)
        # the process may have mapped more since its frames were counted: half of what was spared is for that
        self._max_mapped = max_virtual_frames(max_spaces, len(kv.segments)) + SPARE_MAPPINGS // 2
        # More than all slots of all spaces cannot be mapped, however many frames there are.
        if min(num_frames, self.num_pages) > self._max_mapped:
            raise ArenaError(
                f"{num_frames} frames of {kv.frame_bytes} bytes in {max_spaces} spaces need more mappings "
                f"than vm.max_map_count ({mapping_limit()}); take larger frames, a smaller pool, or raise it"
            )
        with contextlib.ExitStack() as undo:
            self._frames = undo.enter_context(MemoryPool(num_frames, kv.frame_bytes))
            place = undo.enter_context(ReservedRange(self._frames, self.num_pages))
            mapper = PageMapper(place)
            undo.pop_all()
        self.use(self._frames, place, mapper, torch.frombuffer(place.buffer(), dtype=torch.uint8))

    @property
    def memory(self) -> Any:
        """See Arena: the direct map of the pool."""
        return self._frames.buffer()

    def open_copier(self) -> None:
        """See Arena: anybody can touch `memory`."""
        return None

    def _check_room(self, num_new: int) -> None:
        if self._num_mapped + num_new > self._max_mapped:
            self._unmap_released()
            if self._num_mapped + num_new > self._max_mapped:
                raise ArenaError(
                    f"{self._num_mapped} frames are mapped; vm.max_map_count ({mapping_limit()}) is the limit"
                )

    def _unmap_released(self) -> None:
        for asid, mapped in enumerate(self._mapped):
            if mapped and not self.table.is_open(asid):
                self._unmap(asid)
