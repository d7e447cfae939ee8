"""Swap: pages of processes on the tiers below the device, and the copies that are under way.

A copy that is under way holds a reference to each of its frames and slots, and that is the whole fence: a
frame whose bytes are still being read has two users, so whoever wants to write there gets a page of its own,
and a frame that is still being filled is nobody's until its copy has ended.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence

from attrs import define, field, frozen

from llmos.device import Copy, CopyDone, Pfn, Place, Tier
from llmos.errors import KernelPanic
from llmos.mm.address_space import AddressSpace
from llmos.mm.page_copy import Backing, CopyState, PageCopy
from llmos.mm.page_table import PageFrames
from llmos.mm.swap_area import SwapArea
from llmos.mm.vmm import VMM

Finish = Callable[["Transfer"], None]
"""Called when a transfer has ended, with its faults filled in."""

DEMOTE_BELOW = 8  # when less than an eighth of the host area is free


class Direction(enum.Enum):
    """Which way a transfer goes."""

    OUT = "out"  # from the device
    IN = "in"  # to the device
    DOWN = "down"  # from the host area to the swap file
    SAVE = "save"  # to a file, from wherever the pages are


@define(eq=False)
class Transfer:
    """One copy under way."""

    id: int
    direction: Direction
    tier: Tier  # the one below: it comes from there, or goes there
    pages: list[PageCopy]  # of the copies on that tier
    frames: list[PageFrames]  # pinned
    vpns: list[int]
    num_bytes: int
    on_end: Finish | None = None
    sources: list[PageCopy] = field(factory=list)  # of DOWN and SAVE: where they come from
    seconds: float = 0.0  # that it took; filled in at its end
    faults: dict[int, str] = field(factory=dict)  # vpn: why; filled in at its end


@frozen
class TierStatistics:
    """One tier at one moment; the counters count from boot."""

    num_slots: int
    num_free: int
    num_bytes_out: int  # written to it
    num_bytes_in: int  # read from it


@frozen
class SwapStatistics:
    """All lower tiers at one moment; the counters count from boot."""

    tiers: dict[Tier, TierStatistics]
    num_in_flight: int
    num_clean_bytes: int  # that needed no copy, because one was there
    num_faults: int  # pages whose copy failed, or was not what it should be
    num_dropped: int  # clean copies given up for those that were needed
    num_file_bytes_out: int  # written to process images
    num_file_bytes_in: int  # read from them


class Swap:
    """Owns the copies on lower tiers of one device's pages.

    Args:
        vmm: of the device.
        num_slots: of "host" and "disk".
        on_fault: told of each page that could not be copied or trusted, in words.
        reuse: keep copies when their pages are back, so that next time only what is new is sent.

    Source: Shen et al. 2024, FastSwitch.
    """

    def __init__(
        self, vmm: VMM, num_slots: dict[Tier, int], on_fault: Callable[[str], None], reuse: bool = True
    ) -> None:
        self.vmm = vmm
        self.reuse = reuse
        self._on_fault = on_fault
        self._areas: dict[Tier, SwapArea] = {
            tier: SwapArea(num_slots.get(tier, 0)) for tier in ("host", "disk")
        }
        self._in_flight: dict[int, Transfer] = {}
        self._messages: list[Copy] = []
        # The copy of what a frame holds, while it holds it: the frame, and which of its lives.
        self._of_frame: dict[Pfn, tuple[int, PageCopy]] = {}
        self._kept: dict[PageCopy, None] = {}  # whole copies of pages that are on the device, oldest first
        self._last_id = 0
        self._num_clean_bytes = self._num_faults = self._num_dropped = 0
        self._num_bytes = {(tier, way): 0 for tier in ("host", "disk", "file") for way in ("out", "in")}

    # --- out ---------------------------------------------------------------------------------------------

    def plan_out(self, space: AddressSpace, num_tokens: int, backing: Backing) -> list[int]:
        """Find the pages of a space that have to be sent: those whose copy is missing or lacks a tail.

        Mutates the backing where somebody else's copy of the same page is good for it. O(pages).
        """
        dirty: list[int] = []
        size = self.vmm.kv.tokens_per_page
        for vpn in range(self.vmm.kv.num_pages(num_tokens)):
            wanted = min(size, num_tokens - vpn * size)
            copy = backing.usable(vpn) or self._copy_of(space.page_table.entries[vpn])
            if copy is None or copy.num_tokens < wanted:
                dirty.append(vpn)
            elif copy is not backing.usable(vpn):
                self._put(backing, vpn, copy)
        return dirty

    def swap_out(
        self,
        space: AddressSpace,
        dirty: Sequence[int],
        num_tokens: int,
        backing: Backing,
        tier: Tier,
        on_end: Finish,
    ) -> Transfer:
        """Send pages of a space down; call before the space is closed. The rest of its copies are clean.

        Args:
            space: open; what it has in its first `num_tokens` positions is known.
            dirty: from `plan_out`, not empty.
            num_tokens: positions to keep.
            backing: gets the copies.
            tier: from `tier_with_room`.
            on_end: called when the copy has ended.
        """
        frames_per_page = self.vmm.kv.frames_per_page
        before = backing.usable(dirty[0] - 1) if dirty[0] else None
        behind = before.slots[-1] if before is not None and before.tier == tier else None
        self._make_room(tier, len(dirty) * frames_per_page)
        slots = self._areas[tier].allocate(len(dirty) * frames_per_page, behind)
        entries = space.page_table.entries
        frames = [entries[vpn] for vpn in dirty]
        size = self.vmm.kv.tokens_per_page
        copies = []
        for i, vpn in enumerate(dirty):
            copy = PageCopy(tier, tuple(slots[i :: len(dirty)]), min(size, num_tokens - vpn * size))
            self._put(backing, vpn, copy)
            copies.append(copy)
            self._remember(frames[i], copy)
        page_bytes = frames_per_page * self.vmm.kv.frame_bytes
        self._num_clean_bytes += (self.vmm.kv.num_pages(num_tokens) - len(dirty)) * page_bytes
        return self._start(
            Direction.OUT, tier, copies, frames, list(dirty), Place("device", _in_runs(frames)), on_end=on_end
        )

    def tier_with_room(self, num_pages: int) -> Tier | None:
        """The highest tier that can take so many pages, clean copies of pages that are up here given up."""
        num_slots = num_pages * self.vmm.kv.frames_per_page
        for tier, area in self._areas.items():
            num_free = area.num_free
            if num_free < num_slots:
                num_free += sum(len(copy.slots) for copy in self._droppable(tier))
            if num_free >= num_slots:
                return tier
        return None

    # --- in ----------------------------------------------------------------------------------------------

    def attach(self, space: AddressSpace, num_tokens: int, limit: int, backing: Backing) -> int:
        """Map pages that are on the device still: a copy out has not ended, or another process has them.

        Args:
            space: open, with whole pages mapped up to `num_tokens`.
            num_tokens: that it has.
            limit: cover at most so many.
            backing: whose copies know where their pages are.

        Returns:
            How many tokens it has now.
        """
        size = self.vmm.kv.tokens_per_page
        pages: list[PageFrames] = []
        while num_tokens < limit and num_tokens % size == 0:
            copy = backing.usable(num_tokens // size)
            if copy is None or copy.home is None:
                break
            frames, generation = copy.home
            if generation != self.vmm.generation(frames[0]) or not self.vmm.is_held(frames):
                break
            pages.append(frames)
            num_tokens += copy.num_tokens
        self.vmm.share_pages(space, pages)
        return min(num_tokens, limit)

    def swap_in(
        self, space: AddressSpace, first: int, stop: int, backing: Backing, on_end: Finish
    ) -> list[Transfer]:
        """Bring pages [first, stop) of a backing into a space where they are mapped, and nobody else's.

        Returns:
            The transfers, one for each tier and file; `on_end` is called for each.
        """
        groups: dict[tuple[Tier, str], list[int]] = {}
        for vpn in range(first, stop):
            copy = backing.usable(vpn)
            if copy is None or copy.state is not CopyState.WHOLE:
                raise KernelPanic(f"page {vpn} is swapped in, and has no whole copy")
            groups.setdefault((copy.tier, copy.path), []).append(vpn)
        transfers = []
        for (tier, _), vpns in groups.items():
            copies = [copy for vpn in vpns if (copy := backing.usable(vpn)) is not None]
            frames = [space.page_table.entries[vpn] for vpn in vpns]
            target = Place("device", _in_runs(frames))
            transfers.append(self._start(Direction.IN, tier, copies, frames, vpns, target, on_end=on_end))
        return transfers

    # --- down, and to a file -----------------------------------------------------------------------------

    @property
    def is_host_short(self) -> bool:
        """Is so little of the host area free that some of it should go to the swap file, and can?"""
        host, disk = self._areas["host"], self._areas["disk"]
        if not disk.num_free or host.num_free * DEMOTE_BELOW >= host.num_slots:
            return False
        return not any(transfer.direction is Direction.DOWN for transfer in self._in_flight.values())

    def demote(self, backing: Backing, on_end: Finish | None = None) -> Transfer | None:
        """Send a process's pages from the host area to the swap file; None when there is nothing to send."""
        vpns = [
            vpn
            for vpn in range(len(backing.pages))
            if (copy := backing.usable(vpn)) is not None
            and copy.tier == "host"
            and copy.state is CopyState.WHOLE
            and not copy.num_transfers
        ]
        frames_per_page = self.vmm.kv.frames_per_page
        vpns = vpns[: self._areas["disk"].num_free // frames_per_page]
        if not vpns:
            return None
        slots = self._areas["disk"].allocate(len(vpns) * frames_per_page)
        sources = [copy for vpn in vpns if (copy := backing.usable(vpn)) is not None]
        copies = [
            PageCopy("disk", tuple(slots[i :: len(vpns)]), source.num_tokens)
            for i, source in enumerate(sources)
        ]

        def move(transfer: Transfer) -> None:
            for vpn, source, copy in zip(transfer.vpns, transfer.sources, transfer.pages, strict=True):
                if copy.state is CopyState.WHOLE and backing.usable(vpn) is source:
                    self._put(backing, vpn, copy)
            if on_end is not None:
                on_end(transfer)

        source = Place("host", _in_runs([copy.slots for copy in sources]))
        return self._start(Direction.DOWN, "disk", copies, [], vpns, source, on_end=move, sources=sources)

    def save(
        self, space: AddressSpace | None, num_tokens: int, backing: Backing, path: str, on_end: Finish
    ) -> list[Transfer]:
        """Write the first `num_tokens` positions to a file, page n from slot n * segments on.

        From the device where the process has memory, else from its copies.

        Returns:
            The transfers; the checksums of their pages are known when they have ended.
        """
        size, segments = self.vmm.kv.tokens_per_page, self.vmm.kv.frames_per_page
        groups: dict[tuple[Tier, str], list[int]] = {}
        for vpn in range(self.vmm.kv.num_pages(num_tokens)):
            copy = None if space is not None else backing.usable(vpn)
            groups.setdefault(("device", "") if copy is None else (copy.tier, copy.path), []).append(vpn)
        transfers = []
        for (tier, source_path), vpns in groups.items():
            copies = [
                PageCopy(
                    "file",
                    tuple(range(vpn * segments, (vpn + 1) * segments)),
                    min(size, num_tokens - vpn * size),
                    path,
                )
                for vpn in vpns
            ]
            frames: list[PageFrames] = []
            sources: list[PageCopy] = []
            if space is not None:
                frames = [space.page_table.entries[vpn] for vpn in vpns]
                source = Place("device", _in_runs(frames))
            else:
                sources = [copy for vpn in vpns if (copy := backing.usable(vpn)) is not None]
                if len(sources) < len(vpns):
                    raise KernelPanic("a process is saved, and some of its pages are nowhere")
                source = Place(tier, _in_runs([copy.slots for copy in sources]), source_path)
            transfers.append(
                self._start(
                    Direction.SAVE, "file", copies, frames, vpns, source, on_end=on_end, sources=sources
                )
            )
        return transfers

    # --- ends --------------------------------------------------------------------------------------------

    def finish(self, done: CopyDone) -> Transfer | None:
        """Take the device's answer in, and call the transfer's `on_end`; None: no such copy is under way."""
        transfer = self._in_flight.pop(done.id, None)
        if transfer is None:
            return None
        transfer.seconds = done.seconds
        num_pages = len(transfer.vpns)
        for fault in done.faults:
            transfer.faults.setdefault(transfer.vpns[fault.index % num_pages], fault.message)
        self._num_faults += len(transfer.faults)
        for message in dict.fromkeys(transfer.faults.values()):
            self._on_fault(message)
        for copy in (*transfer.pages, *transfer.sources):
            copy.num_transfers -= 1
        for i, (vpn, copy) in enumerate(zip(transfer.vpns, transfer.pages, strict=True)):
            if vpn in transfer.faults:
                self._lose(copy)
                if transfer.sources:  # it may be what is bad
                    self._lose(transfer.sources[i])
            elif copy.state is CopyState.LOST:
                pass  # given up meanwhile
            elif transfer.direction is Direction.IN:
                self._remember(transfer.frames[i], copy)
            else:
                copy.state = CopyState.WHOLE
                copy.checksums = done.checksums[i::num_pages]
        if transfer.on_end is not None:
            transfer.on_end(transfer)
        for copy in (*transfer.pages, *transfer.sources):
            self._settle(copy)
        self.vmm.unpin(transfer.frames)
        return transfer

    def inherit(self, parent: Backing, child: Backing) -> None:
        """Give a child that has nothing the copies of its parent; both depend on them."""
        child.set_needed(True)
        for vpn in range(len(parent.pages)):
            if (copy := parent.usable(vpn)) is not None:
                self._put(child, vpn, copy)

    def adopt(self, backing: Backing, pages: Sequence[PageCopy]) -> None:
        """Give a process that has nothing its pages in a file, from the first one on; it depends on them."""
        backing.set_needed(True)
        for vpn, copy in enumerate(pages):
            self._put(backing, vpn, copy)

    def abandon(self, backing: Backing) -> None:
        """The process is gone, or needs none of this any more: let go of all its copies."""
        for vpn in range(len(backing.pages)):
            self._put(backing, vpn, None)
        backing.pages.clear()

    def set_needed(self, backing: Backing, is_needed: bool) -> None:
        """Say whether a process depends on its copies, or has its pages on the device."""
        backing.set_needed(is_needed)
        if not is_needed and not self.reuse:
            self.abandon(backing)
        for copy in backing:
            self._settle(copy)

    def take_messages(self) -> list[Copy]:
        """Drain what the device must be told, after the edits that were queued before it."""
        messages, self._messages = self._messages, []
        return messages

    def reset(self) -> None:
        """The device is gone, and the tiers below with it; files are not."""
        lost, self._in_flight = list(self._in_flight.values()), {}
        self._messages.clear()
        for transfer in lost:
            for copy in (*transfer.pages, *transfer.sources):
                copy.num_transfers = 0
                if copy.state is CopyState.PENDING:
                    copy.state = CopyState.LOST
            transfer.faults = dict.fromkeys(transfer.vpns, "the device was lost before the copy had ended")
            if transfer.direction is Direction.SAVE and transfer.on_end is not None:
                transfer.on_end(transfer)  # somebody waits for the file; the rest is the processes' loss
        self._of_frame.clear()
        self._kept.clear()
        self._areas = {tier: SwapArea(area.num_slots) for tier, area in self._areas.items()}

    def forget(self, backing: Backing) -> None:
        """After `reset`: what a process had on tiers that went with the device is lost."""
        for copy in backing:
            if copy.tier != "file":
                copy.state, copy.holds_slots = CopyState.LOST, False

    # --- looking -----------------------------------------------------------------------------------------

    @property
    def num_in_flight(self) -> int:
        """Copies that have not ended."""
        return len(self._in_flight)

    def transfers(self) -> Iterable[Transfer]:
        """Copies that have not ended."""
        return self._in_flight.values()

    @property
    def num_leaving_frames(self) -> int:
        """Frames that nobody but a copy out refers to: they will be free when it ends."""
        return sum(
            self.vmm.is_only_pinned(frames) * len(frames)
            for transfer in self._in_flight.values()
            for frames in transfer.frames
        )

    def has_room(self) -> bool:
        """Is there a tier below at all?"""
        return any(area.num_slots for area in self._areas.values())

    def has_free_host_pages(self, num_pages: int) -> bool:
        """Is there room in the host area, without giving up what is there, and with an eighth to spare?"""
        area = self._areas["host"]
        num_left = area.num_free - num_pages * self.vmm.kv.frames_per_page
        return num_left * DEMOTE_BELOW >= area.num_slots

    def statistics(self) -> SwapStatistics:
        """Count."""
        return SwapStatistics(
            tiers={
                tier: TierStatistics(
                    area.num_slots,
                    area.num_free,
                    self._num_bytes[tier, "out"],
                    self._num_bytes[tier, "in"],
                )
                for tier, area in self._areas.items()
            },
            num_in_flight=len(self._in_flight),
            num_clean_bytes=self._num_clean_bytes,
            num_faults=self._num_faults,
            num_dropped=self._num_dropped,
            num_file_bytes_out=self._num_bytes["file", "out"],
            num_file_bytes_in=self._num_bytes["file", "in"],
        )

    def check_integrity(self, backings: Sequence[Backing]) -> None:
        """Raise KernelPanic unless every slot is free, or held by a copy that somebody uses or a transfer."""
        copies = {copy for backing in backings for copy in backing.pages if copy is not None}
        for copy in copies:
            users = sum(backing.pages.count(copy) for backing in backings)
            needed = sum(backing.pages.count(copy) for backing in backings if backing.is_needed)
            if (copy.num_users, copy.num_needed) != (users, needed):
                raise KernelPanic(f"a copy counts {copy.num_users} users and has {users}: {copy}")
        for transfer in self._in_flight.values():
            copies.update(transfer.pages, transfer.sources)
        for tier, area in self._areas.items():
            area.check_integrity()
            held = [slot for copy in copies if copy.tier == tier and copy.holds_slots for slot in copy.slots]
            if len(set(held)) != len(held) or len(held) + area.num_free != area.num_slots:
                raise KernelPanic(
                    f"{tier}: {area.num_slots} slots, {area.num_free} free, {len(held)} held by copies"
                )

    # --- inside ------------------------------------------------------------------------------------------

    def _start(
        self,
        direction: Direction,
        tier: Tier,
        copies: list[PageCopy],
        frames: list[PageFrames],
        vpns: list[int],
        other: Place,
        *,
        on_end: Finish,
        sources: list[PageCopy] | None = None,
    ) -> Transfer:
        """Pin what takes part and queue the message. `other` is the end that is not on `tier`."""
        self._last_id += 1
        num_bytes = len(other.slots) * self.vmm.kv.frame_bytes
        transfer = Transfer(
            self._last_id, direction, tier, copies, frames, vpns, num_bytes, on_end, sources or []
        )
        self._in_flight[transfer.id] = transfer
        for copy in (*copies, *transfer.sources):
            copy.num_transfers += 1
            self._kept.pop(copy, None)
        self.vmm.pin(frames)
        below = Place(tier, _in_runs([copy.slots for copy in copies]), copies[0].path)
        if direction is Direction.IN:
            self._messages.append(Copy(transfer.id, below, other, _checksums(copies)))
            self._num_bytes[tier, "in"] += num_bytes
        else:
            self._messages.append(Copy(transfer.id, other, below, _checksums(transfer.sources)))
            self._num_bytes[tier, "out"] += num_bytes
        return transfer

    def _droppable(self, tier: Tier) -> list[PageCopy]:
        """Copies that nobody depends on, oldest first."""
        return [copy for copy in self._kept if copy.tier == tier]

    def _make_room(self, tier: Tier, num_slots: int) -> None:
        area = self._areas[tier]
        if area.num_free < num_slots:
            for copy in self._droppable(tier):
                if area.num_free >= num_slots:
                    break
                self._lose(copy)
                self._num_dropped += 1

    def _remember(self, frames: PageFrames, copy: PageCopy) -> None:
        copy.home = (frames, self.vmm.generation(frames[0]))
        self._of_frame[frames[0]] = (copy.home[1], copy)

    def _copy_of(self, frames: PageFrames) -> PageCopy | None:
        """The copy of what a frame holds now."""
        generation, copy = self._of_frame.get(frames[0], (-1, None))
        if copy is None or generation != self.vmm.generation(frames[0]) or copy.state is CopyState.LOST:
            return None
        return copy

    def _put(self, backing: Backing, vpn: int, copy: PageCopy | None) -> None:
        replaced = backing.put(vpn, copy)
        for changed in (replaced, copy):
            if changed is not None:
                self._settle(changed)

    def _settle(self, copy: PageCopy) -> None:
        """Take the consequences of a change: free what nobody has, list what only saves time as droppable."""
        if not copy.num_users and not copy.num_transfers:
            copy.state = CopyState.LOST
        if copy.state is CopyState.WHOLE and copy.is_redundant:
            self._kept.setdefault(copy)
        else:
            self._kept.pop(copy, None)
        if copy.state is CopyState.LOST and copy.holds_slots and not copy.num_transfers:
            copy.holds_slots = False
            if copy.tier in self._areas:
                self._areas[copy.tier].free(copy.slots)

    def _lose(self, copy: PageCopy) -> None:
        """Stop trusting a copy, or give it up."""
        copy.state = CopyState.LOST
        self._settle(copy)


def _in_runs(pages: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Slots of pages, segment by segment: each segment of adjacent pages is a run of adjacent slots."""
    return tuple(slot for segment in zip(*pages, strict=True) for slot in segment)


def _checksums(copies: Sequence[PageCopy]) -> tuple[int, ...]:
    """Of what is read from disk or a file, slot by slot as `_in_runs` orders them; empty from memory."""
    if not copies or not all(copy.checksums for copy in copies):
        return ()
    return _in_runs([copy.checksums for copy in copies])
