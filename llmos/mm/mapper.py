"""The mapper: which frames go behind which pages, when the device is told, and what is mapped ahead of need.

A page that is mapped in the step that writes it makes that step wait. So the next page of a process is mapped
a few tokens before it is needed, if a frame is free, with an edit that the device carries out beside its
computation. Nobody is preempted for such a page, and as long as it is not used, its frames count as free: it
is given back before anything else is evicted.

Source: Prabhu et al. 2024, "vAttention", arXiv:2405.04437.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attrs import define, field, frozen

from llmos.device import Map, MapWork, Vpn
from llmos.errors import KernelPanic
from llmos.mm.address_space import AddressSpace
from llmos.mm.edit_queue import EditQueue
from llmos.mm.frame import FramePool
from llmos.mm.page_table import PageFrames

MappingMode = Literal["ahead", "sync", "premapped"]

AHEAD_TOKENS = 8  # left in a page when the next one is mapped: so many steps for the device to do it in
AHEAD_SPREAD = 8  # and up to so many more, so that processes that began together do not all ask in one step


@frozen
class MapStatistics:
    """Map edits since the VMM was made, by what they cost the step that they ride on."""

    num_sync: int  # the step waits for them
    num_ahead: int  # carried out beside the step
    num_reused: int  # of both, those that find their frames mapped there already: no system call
    num_unused: int  # of the pages mapped ahead, those given back before they were needed
    num_waiting_steps: int  # that the device says waited for a map
    device: MapWork  # what the device says it did


@define(eq=False)
class Mapper:
    """Takes frames for pages and queues their edits.

    Args:
        pool: of the frames.
        edits: where it queues them.
        frames_per_page: one for each segment.
        mode: "ahead"; or, to compare with it, "sync": every page is mapped in the step that writes it, or
            "premapped": every page that a space can have is mapped at its first, while frames are free.
        reuse: take frames where they are mapped already; False, to compare with it: whichever come first.
    """

    pool: FramePool
    edits: EditQueue
    frames_per_page: int
    mode: MappingMode = "ahead"
    reuse: bool = True
    num_ahead_frames: int = field(init=False, default=0)  # mapped ahead and unused; they count as free
    _holders: dict[AddressSpace, None] = field(init=False, factory=dict)  # of such frames, longest first
    _num_sync: int = field(init=False, default=0)
    _num_ahead: int = field(init=False, default=0)
    _num_reused: int = field(init=False, default=0)
    _num_unused: int = field(init=False, default=0)
    _num_waiting_steps: int = field(init=False, default=0)
    _device: MapWork = field(init=False, factory=MapWork)

    def reset(self) -> None:
        """The device lost its memory: nothing is mapped; what was counted stays."""
        self._holders.clear()
        self.num_ahead_frames = 0

    def note_work(self, work: MapWork) -> None:
        """Count what the device did for one step."""
        self._device = self._device.plus(work)
        self._num_waiting_steps += bool(work.num_sync or work.num_late)

    def ahead_tokens(self, asid: int) -> int:
        """How many tokens before the end of a page a space asks for the next one; 0: never."""
        return 0 if self.mode == "sync" else AHEAD_TOKENS + asid % AHEAD_SPREAD

    def take(self, space: AddressSpace, vpns: Sequence[int]) -> list[PageFrames]:
        """Take frames for pages of a space; as many are free. Those that are mapped there already come first.

        The others are taken segment by segment, so that each segment of a run of pages is a run of frames.
        """
        pages: dict[int, PageFrames] = {}
        mappings = space.mappings
        for vpn in vpns:
            if self.reuse and vpn < len(mappings) and self.pool.try_take(mappings[vpn]):
                pages[vpn] = mappings[vpn]
        rest = [vpn for vpn in vpns if vpn not in pages]
        if rest:
            frames = self.pool.allocate(len(rest) * self.frames_per_page)
            num_rest = len(rest)
            runs = [frames[i * num_rest : (i + 1) * num_rest] for i in range(self.frames_per_page)]
            pages.update(zip(rest, zip(*runs, strict=True), strict=True))
        return [pages[vpn] for vpn in vpns]

    def map(self, space: AddressSpace, vpn: int, frames: PageFrames) -> None:
        """Put frames behind a page of a space, in the next step."""
        space.page_table.map(Vpn(vpn), frames)
        self._tell(space, vpn, frames, is_ahead=False)

    # --- ahead of need -----------------------------------------------------------------------------------

    def extend(self, space: AddressSpace, num_pages: int) -> None:
        """Map pages ahead until a space has `num_pages` with them, or no frame is free."""
        if self.mode == "premapped":
            num_pages = space.max_pages
        start = space.num_pages + len(space.ahead)
        stop = min(num_pages, space.max_pages, start + self.pool.num_free // self.frames_per_page)
        if stop <= start:
            return
        vpns = range(start, stop)
        for vpn, frames in zip(vpns, self.take(space, vpns), strict=True):
            self._tell(space, vpn, frames, is_ahead=True)
            space.ahead.append(frames)
        self._holders[space] = None
        self.num_ahead_frames += len(vpns) * self.frames_per_page

    def use(self, space: AddressSpace) -> None:
        """The first page that was mapped ahead is needed: it becomes the space's next one."""
        space.page_table.map(Vpn(space.num_pages), space.ahead.pop(0))
        self.num_ahead_frames -= self.frames_per_page
        if not space.ahead:
            del self._holders[space]

    def drop(self, space: AddressSpace) -> None:
        """Give back what a space has mapped ahead: it ends, or its next page will be another."""
        while space.ahead:
            self._give_back_last(space)

    def reclaim(self, num_frames: int, space: AddressSpace, num_pages: int) -> None:
        """Free so many frames that are mapped ahead, or all there are but the first pages of one space."""
        for holder in list(self._holders):
            num_kept = num_pages if holder is space else 0
            while len(holder.ahead) > num_kept and num_frames > 0:
                self._give_back_last(holder)
                num_frames -= self.frames_per_page

    # --- looking -----------------------------------------------------------------------------------------

    def statistics(self) -> MapStatistics:
        """Count. O(1)."""
        return MapStatistics(
            num_sync=self._num_sync,
            num_ahead=self._num_ahead,
            num_reused=self._num_reused,
            num_unused=self._num_unused,
            num_waiting_steps=self._num_waiting_steps,
            device=self._device,
        )

    def check_integrity(self, spaces: Sequence[AddressSpace]) -> None:
        """Raise KernelPanic unless what is mapped ahead adds up, and is mapped where it will be needed."""
        if set(self._holders) != {space for space in spaces if space.ahead}:
            raise KernelPanic("those who have pages mapped ahead are not those who are known to")
        if sum(len(space.ahead) for space in spaces) * self.frames_per_page != self.num_ahead_frames:
            raise KernelPanic(f"{self.num_ahead_frames} frames are not what is mapped ahead")
        for space in spaces:
            held = [*space.page_table.entries, *space.ahead]
            if space.mappings[: len(held)] != held:
                raise KernelPanic(f"space {space.asid} holds {held}; the device has {space.mappings}")

    # --- inside ------------------------------------------------------------------------------------------

    def _tell(self, space: AddressSpace, vpn: int, frames: PageFrames, *, is_ahead: bool) -> None:
        self.edits.put(Map(space.asid, vpn, frames, is_ahead))
        if is_ahead:
            self._num_ahead += 1
        else:
            self._num_sync += 1
        mappings = space.mappings
        if vpn == len(mappings):
            mappings.append(frames)
        elif mappings[vpn] == frames:
            self._num_reused += 1
        else:
            mappings[vpn] = frames

    def _give_back_last(self, space: AddressSpace) -> None:
        for pfn in space.ahead.pop():
            self.pool.release(pfn)
        self.num_ahead_frames -= self.frames_per_page
        self._num_unused += 1
        if not space.ahead:
            del self._holders[space]
