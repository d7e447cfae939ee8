"""Page tables on the device side: which frames back which page of every space."""

from __future__ import annotations

import attrs

from llmos.device import CopyPage, KVFormat, Map

__all__ = ["ArenaError", "PageTable"]


class ArenaError(ValueError):
    """An edit, or a configuration, that this device cannot carry out; the message names the number."""


@attrs.define(eq=False)
class PageTable:
    """The entries of all spaces, checked; what both arenas agree on, without memory behind it."""

    kv: KVFormat
    num_frames: int
    max_spaces: int
    pages_per_space: int
    _spaces: dict[int, dict[int, tuple[int, ...]]] = attrs.field(factory=dict, init=False)
    _num_contiguous: dict[int, int] = attrs.field(factory=dict, init=False)

    def reserve(self, asid: int) -> None:
        """Open a space."""
        if not 0 <= asid < self.max_spaces:
            raise ArenaError(f"space {asid} is outside the {self.max_spaces} that this device has")
        if asid in self._spaces:
            raise ArenaError(f"space {asid} is open already")
        self._spaces[asid] = {}
        self._num_contiguous[asid] = 0

    def release(self, asid: int) -> None:
        """Close a space."""
        self._space(asid)
        del self._spaces[asid]
        del self._num_contiguous[asid]

    def check_map(self, edit: Map) -> None:
        """Raise ArenaError unless the entry can be set."""
        self._space(edit.asid)
        if not 0 <= edit.vpn < self.pages_per_space:
            raise ArenaError(f"page {edit.vpn} is outside the {self.pages_per_space} of a space")
        self.check_frames(edit.pfns)

    def map(self, edit: Map) -> None:
        """Set one entry that passed `check_map`."""
        space = self._spaces[edit.asid]
        space[edit.vpn] = edit.pfns
        count = self._num_contiguous[edit.asid]
        while count in space:
            count += 1
        self._num_contiguous[edit.asid] = count

    def check_frames(self, pfns: tuple[int, ...]) -> None:
        """Raise ArenaError unless these can be the frames of one page."""
        if len(pfns) != self.kv.frames_per_page or len(set(pfns)) < len(pfns):
            raise ArenaError(f"a page takes {self.kv.frames_per_page} different frames, got {pfns}")
        for pfn in pfns:
            if not 0 <= pfn < self.num_frames:
                raise ArenaError(f"frame {pfn} is outside the {self.num_frames} that this device has")

    def check_copy(self, edit: CopyPage) -> None:
        """Raise ArenaError unless every frame can be copied."""
        self.check_frames(edit.sources)
        self.check_frames(edit.targets)
        if set(edit.sources) & set(edit.targets):
            raise ArenaError(f"frames {edit.sources} cannot be copied to {edit.targets}: one is in both")

    def num_mapped_pages(self, asid: int) -> int:
        """Pages mapped from page 0 on without a gap; 0 for a space that is not open."""
        return self._num_contiguous.get(asid, 0)

    def frames(self, asid: int, vpn: int) -> tuple[int, ...]:
        """Frames behind a mapped page."""
        return self._spaces[asid][vpn]

    def is_open(self, asid: int) -> bool:
        """True between reserve and release."""
        return asid in self._spaces

    def _space(self, asid: int) -> dict[int, tuple[int, ...]]:
        if asid not in self._spaces:
            raise ArenaError(f"space {asid} is not open")
        return self._spaces[asid]
