"""The copies that a device's processes have on lower tiers: who needs which, and what can be given up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmos.device import Pfn, Tier
from llmos.errors import KernelPanic
from llmos.mm.page_copy import Backing, CopyState, PageCopy
from llmos.mm.page_table import PageFrames
from llmos.mm.swap_area import SwapArea

SPARE_SHARE = 8  # an eighth of the host area should be free
PAUSE_SECONDS = 10.0  # without writes to a tier that had no room, or was broken, at the last one


class CopyStore:
    """Owns the slots of the lower tiers, and knows whose pages lie there.

    Args:
        num_slots: of "host" and "disk".
        frames_per_page: slots of a page.
        generation: which of its lives a frame is in.
        reuse: keep copies when their pages are back, so that next time only what is new is sent.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        num_slots: dict[Tier, int],
        frames_per_page: int,
        generation: Callable[[Pfn], int],
        reuse: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.areas: dict[Tier, SwapArea] = {
            tier: SwapArea(num_slots.get(tier, 0)) for tier in ("host", "disk")
        }
        self.reuse = reuse
        self.num_dropped = 0  # copies given up for those that were needed, since this was made
        self._frames_per_page = frames_per_page
        self._generation = generation
        self._clock = clock
        self._paused_until: dict[Tier, float] = {}
        # The copy of what a frame holds, while it holds it: the frame, and which of its lives.
        self._of_frame: dict[Pfn, tuple[int, PageCopy]] = {}
        self._kept: dict[PageCopy, None] = {}  # whole copies of pages that are on the device, oldest first

    # --- processes and their copies ----------------------------------------------------------------------

    def inherit(self, parent: Backing, child: Backing) -> None:
        """Give a child that has nothing the copies of its parent; both depend on them."""
        child.set_needed(True)
        for vpn in range(len(parent.pages)):
            if (copy := parent.usable(vpn)) is not None:
                self.put(child, vpn, copy)

    def adopt(self, backing: Backing, pages: Sequence[PageCopy]) -> None:
        """Give a process that has nothing its pages in a file, from the first one on; it depends on them."""
        backing.set_needed(True)
        for vpn, copy in enumerate(pages):
            self.put(backing, vpn, copy)

    def abandon(self, backing: Backing) -> None:
        """The process is gone, or needs none of this any more: let go of all its copies."""
        for vpn in range(len(backing.pages)):
            self.put(backing, vpn, None)
        backing.pages.clear()

    def set_needed(self, backing: Backing, is_needed: bool) -> None:
        """Say whether a process depends on its copies, or has its pages on the device."""
        backing.set_needed(is_needed)
        if not is_needed and not self.reuse:
            self.abandon(backing)
        for copy in backing:
            self.settle(copy)

    def forget(self, backing: Backing) -> None:
        """After `reset`: what a process had on tiers that went with the device is lost."""
        for copy in backing:
            if copy.tier != "file":
                copy.state, copy.holds_slots = CopyState.LOST, False

    def reset(self) -> None:
        """The tiers are gone, and all that was there."""
        self._of_frame.clear()
        self._kept.clear()
        self._paused_until.clear()
        self.areas = {tier: SwapArea(area.num_slots) for tier, area in self.areas.items()}

    # --- room --------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Is there a tier below at all?"""
        return any(area.num_slots for area in self.areas.values())

    def has_free_host_pages(self, num_pages: int) -> bool:
        """Is there room in the host area, without giving up what is there, and with an eighth to spare?"""
        area = self.areas["host"]
        num_left = area.num_free - num_pages * self._frames_per_page
        return num_left * SPARE_SHARE >= area.num_slots

    def pause(self, tier: Tier) -> None:
        """A write there failed, and the next ones would: a full disk stays full for a while."""
        self._paused_until[tier] = self._clock() + PAUSE_SECONDS

    def _is_paused(self, tier: Tier) -> bool:
        return self._clock() < self._paused_until.get(tier, 0.0)

    def tier_with_room(self, num_pages: int) -> Tier | None:
        """The highest tier that can take so many pages, clean copies of pages that are up here given up."""
        num_slots = num_pages * self._frames_per_page
        for tier, area in self.areas.items():
            if self._is_paused(tier):
                continue
            num_free = area.num_free
            if num_free < num_slots:
                num_free += sum(len(copy.slots) for copy in self._droppable(tier))
            if num_free >= num_slots:
                return tier
        return None

    @property
    def is_host_short(self) -> bool:
        """Is so little of the host area free that some of it should go to the swap file, and can?"""
        host, disk = self.areas["host"], self.areas["disk"]
        takes_more = bool(disk.num_free) and not self._is_paused("disk")
        return takes_more and host.num_free * SPARE_SHARE < host.num_slots

    def make_room(self, tier: Tier, num_slots: int) -> None:
        """Give up copies that nobody depends on until so many slots are free, or none is left."""
        area = self.areas[tier]
        for copy in self._droppable(tier) if area.num_free < num_slots else ():
            if area.num_free >= num_slots:
                break
            self.lose(copy)
            self.num_dropped += 1

    def _droppable(self, tier: Tier) -> list[PageCopy]:
        """Copies that nobody depends on, oldest first."""
        return [copy for copy in self._kept if copy.tier == tier]

    # --- single copies -----------------------------------------------------------------------------------

    def remember(self, frames: PageFrames, copy: PageCopy) -> None:
        """A page on the device and a copy of it are the same, for as many tokens as the copy holds."""
        copy.home = (frames, self._generation(frames[0]))
        self._of_frame[frames[0]] = (copy.home[1], copy)

    def copy_of(self, frames: PageFrames) -> PageCopy | None:
        """The copy of what a frame holds now."""
        generation, copy = self._of_frame.get(frames[0], (-1, None))
        if copy is None or generation != self._generation(frames[0]) or copy.state is CopyState.LOST:
            return None
        return copy

    def put(self, backing: Backing, vpn: int, copy: PageCopy | None) -> None:
        """Set the copy of one of a process's pages, or take it away."""
        replaced = backing.put(vpn, copy)
        for changed in (replaced, copy):
            if changed is not None:
                self.settle(changed)

    def settle(self, copy: PageCopy) -> None:
        """Take the consequences of a change: free what nobody has, list what only saves time as droppable."""
        if not copy.num_users and not copy.num_transfers:
            copy.state = CopyState.LOST
        if copy.state is CopyState.WHOLE and copy.is_redundant:
            self._kept.setdefault(copy)
        else:
            self._kept.pop(copy, None)
        if copy.state is CopyState.LOST and copy.holds_slots and not copy.num_transfers:
            copy.holds_slots = False
            if copy.tier in self.areas:
                self.areas[copy.tier].free(copy.slots)

    def lose(self, copy: PageCopy) -> None:
        """Stop trusting a copy, or give it up."""
        copy.state = CopyState.LOST
        self.settle(copy)

    def check_integrity(self, backings: Sequence[Backing], in_transfers: set[PageCopy]) -> None:
        """Raise KernelPanic unless every slot is free, or held by a copy that somebody uses or a transfer."""
        copies = {copy for backing in backings for copy in backing.pages if copy is not None}
        for copy in copies:
            users = sum(backing.pages.count(copy) for backing in backings)
            needed = sum(backing.pages.count(copy) for backing in backings if backing.is_needed)
            if (copy.num_users, copy.num_needed) != (users, needed):
                raise KernelPanic(f"a copy counts {copy.num_users} users and has {users}: {copy}")
        copies |= in_transfers
        for tier, area in self.areas.items():
            area.check_integrity()
            held = [slot for copy in copies if copy.tier == tier and copy.holds_slots for slot in copy.slots]
            if len(set(held)) != len(held) or len(held) + area.num_free != area.num_slots:
                raise KernelPanic(
                    f"{tier}: {area.num_slots} slots, {area.num_free} free, {len(held)} held by copies"
                )
