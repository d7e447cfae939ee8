"""Swap: pages of processes on the tiers below the device, and the copies that are under way.

A copy that is under way holds a reference to each of its frames and slots, and that is the whole fence: a
frame whose bytes are still being read has two users, so whoever wants to write there gets a page of its own,
and a frame that is still being filled is nobody's until its copy has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from attrs import frozen

from llmos.device import Copy, CopyDone, Place, Tier
from llmos.errors import KernelPanic
from llmos.mm.address_space import AddressSpace
from llmos.mm.copy_store import CopyStore
from llmos.mm.page_copy import Backing, CopyState, PageCopy
from llmos.mm.page_table import PageFrames
from llmos.mm.transfer import Direction, Finish, Transfer, checksums_of, in_runs
from llmos.mm.vmm import VMM


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
    num_beside_steps: int  # copies that ended before a step that was sent before them
    num_clean_bytes: int  # that needed no copy, because one was there
    num_faults: int  # pages whose copy failed, or was not what it should be
    num_dropped: int  # clean copies given up for those that were needed
    num_file_bytes_out: int  # written to process images
    num_file_bytes_in: int  # read from them


class Swap:
    """Moves pages of one device between it and the tiers below; `copies` says what lies there.

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
        self._on_fault = on_fault
        self.copies = CopyStore(num_slots, vmm.kv.frames_per_page, vmm.references.generation, reuse)
        self._in_flight: dict[int, Transfer] = {}
        self._messages: list[Copy] = []
        self._last_id = 0
        self._num_clean_bytes = self._num_faults = self._num_beside_steps = 0
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
            copy = backing.usable(vpn) or self.copies.copy_of(space.page_table.entries[vpn])
            if copy is None or copy.num_tokens < wanted:
                dirty.append(vpn)
            elif copy is not backing.usable(vpn):
                self.copies.put(backing, vpn, copy)
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
        self.copies.make_room(tier, len(dirty) * frames_per_page)
        slots = self.copies.areas[tier].allocate(len(dirty) * frames_per_page, behind)
        entries = space.page_table.entries
        frames = [entries[vpn] for vpn in dirty]
        size = self.vmm.kv.tokens_per_page
        copies = []
        for i, vpn in enumerate(dirty):
            copy = PageCopy(tier, tuple(slots[i :: len(dirty)]), min(size, num_tokens - vpn * size))
            self.copies.put(backing, vpn, copy)
            copies.append(copy)
            self.copies.remember(frames[i], copy)
        page_bytes = self.vmm.kv.page_bytes
        self._num_clean_bytes += (self.vmm.kv.num_pages(num_tokens) - len(dirty)) * page_bytes
        return self._start(
            Direction.OUT, tier, copies, frames, list(dirty), Place("device", in_runs(frames)), on_end=on_end
        )

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
        size, references = self.vmm.kv.tokens_per_page, self.vmm.references
        pages: list[PageFrames] = []
        while num_tokens < limit and num_tokens % size == 0:
            copy = backing.usable(num_tokens // size)
            if copy is None or copy.home is None:
                break
            frames, generation = copy.home
            if generation != references.generation(frames[0]) or not references.is_held(frames):
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
            target = Place("device", in_runs(frames))
            transfers.append(self._start(Direction.IN, tier, copies, frames, vpns, target, on_end=on_end))
        return transfers

    # --- down, and to a file -----------------------------------------------------------------------------

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
        vpns = vpns[: self.copies.areas["disk"].num_free // frames_per_page]
        if not vpns:
            return None
        slots = self.copies.areas["disk"].allocate(len(vpns) * frames_per_page)
        sources = [copy for vpn in vpns if (copy := backing.usable(vpn)) is not None]
        copies = [
            PageCopy("disk", tuple(slots[i :: len(vpns)]), source.num_tokens)
            for i, source in enumerate(sources)
        ]

        def move(transfer: Transfer) -> None:
            for vpn, source, copy in zip(transfer.vpns, transfer.sources, transfer.pages, strict=True):
                if copy.state is CopyState.WHOLE and backing.usable(vpn) is source:
                    self.copies.put(backing, vpn, copy)
            if on_end is not None:
                on_end(transfer)

        source = Place("host", in_runs([copy.slots for copy in sources]))
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
                source = Place("device", in_runs(frames))
            else:
                sources = [copy for vpn in vpns if (copy := backing.usable(vpn)) is not None]
                if len(sources) < len(vpns):
                    raise KernelPanic("a process is saved, and some of its pages are nowhere")
                source = Place(tier, in_runs([copy.slots for copy in sources]), source_path)
            transfers.append(
                self._start(
                    Direction.SAVE, "file", copies, frames, vpns, source, on_end=on_end, sources=sources
                )
            )
        return transfers

    # --- ends --------------------------------------------------------------------------------------------

    def finish(self, done: CopyDone, oldest_step: int | None = None) -> Transfer | None:
        """Take the device's answer in, and call the transfer's `on_end`; None: no such copy is under way.

        Args:
            done: the answer.
            oldest_step: that is not answered yet; None: all are.
        """
        transfer = self._in_flight.pop(done.id, None)
        if transfer is None:
            return None
        transfer.seconds = done.seconds
        self._num_beside_steps += oldest_step is not None and oldest_step <= transfer.last_step
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
                self.copies.lose(copy)
                if transfer.sources:  # it may be what is bad
                    self.copies.lose(transfer.sources[i])
            elif copy.state is CopyState.LOST:
                pass  # given up meanwhile
            elif transfer.direction is Direction.IN:
                self.copies.remember(transfer.frames[i], copy)
            else:
                copy.state = CopyState.WHOLE
                copy.checksums = done.checksums[i::num_pages]
        if transfer.on_end is not None:
            transfer.on_end(transfer)
        for copy in (*transfer.pages, *transfer.sources):
            self.copies.settle(copy)
        self.vmm.references.unfence(transfer.frames)
        return transfer

    @property
    def has_messages(self) -> bool:
        """Is there something to be told?"""
        return bool(self._messages)

    def take_messages(self, last_step: int = 0) -> list[Copy]:
        """Drain what the device must be told, after the copies of pages that were queued before it.

        `last_step` is the one that it is told before that.
        """
        messages, self._messages = self._messages, []
        for message in messages:
            self._in_flight[message.id].last_step = last_step
        return messages

    def pages_used(self, copy: Copy) -> list[PageFrames]:
        """Pages of the device that a copy out reads or one in fills; none of others: those take turns."""
        transfer = self._in_flight[copy.id]
        return transfer.frames if transfer.direction in (Direction.OUT, Direction.IN) else []

    def reset(self) -> None:
        """The device is gone, and the tiers below with it; files are not."""
        lost, self._in_flight = list(self._in_flight.values()), {}
        self._messages.clear()
        for transfer in lost:
            for copy in (*transfer.pages, *transfer.sources):
                copy.num_transfers = 0
                copy.holds_slots = copy.holds_slots and copy.tier == "file"  # the areas are made anew
                if copy.state is CopyState.PENDING:
                    copy.state = CopyState.LOST
            transfer.faults = dict.fromkeys(transfer.vpns, "the device was lost before the copy had ended")
            if transfer.direction is Direction.SAVE and transfer.on_end is not None:
                transfer.on_end(transfer)  # somebody waits for the file; the rest is the processes' loss
        self.copies.reset()

    # --- looking -----------------------------------------------------------------------------------------

    @property
    def num_in_flight(self) -> int:
        """Copies that have not ended."""
        return len(self._in_flight)

    def transfers(self) -> Iterable[Transfer]:
        """Copies that have not ended."""
        return self._in_flight.values()

    @property
    def is_demoting(self) -> bool:
        """Is a copy from the host area to the swap file under way?"""
        return any(transfer.direction is Direction.DOWN for transfer in self._in_flight.values())

    @property
    def num_leaving_frames(self) -> int:
        """Frames that nobody but a copy out refers to: they will be free when it ends."""
        return sum(
            self.vmm.references.is_only_fenced(frames) * len(frames)
            for transfer in self._in_flight.values()
            for frames in transfer.frames
        )

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
                for tier, area in self.copies.areas.items()
            },
            num_in_flight=len(self._in_flight),
            num_beside_steps=self._num_beside_steps,
            num_clean_bytes=self._num_clean_bytes,
            num_faults=self._num_faults,
            num_dropped=self.copies.num_dropped,
            num_file_bytes_out=self._num_bytes["file", "out"],
            num_file_bytes_in=self._num_bytes["file", "in"],
        )

    def check_integrity(self, backings: Sequence[Backing]) -> None:
        """Raise KernelPanic unless every slot is free, or held by a copy that somebody uses or a transfer."""
        in_transfers = {
            copy for transfer in self._in_flight.values() for copy in (*transfer.pages, *transfer.sources)
        }
        self.copies.check_integrity(backings, in_transfers)

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
        """Fence what takes part and queue the message. `other` is the end that is not on `tier`."""
        self._last_id += 1
        num_bytes = len(other.slots) * self.vmm.kv.frame_bytes
        transfer = Transfer(
            self._last_id, direction, tier, copies, frames, vpns, num_bytes, on_end, sources or []
        )
        self._in_flight[transfer.id] = transfer
        for copy in (*copies, *transfer.sources):
            copy.num_transfers += 1
            self.copies.settle(copy)
        self.vmm.references.fence(frames)
        below = Place(tier, in_runs([copy.slots for copy in copies]), copies[0].path)
        if direction is Direction.IN:
            self._messages.append(Copy(transfer.id, below, other, checksums_of(copies)))
            self._num_bytes[tier, "in"] += num_bytes
        else:
            self._messages.append(Copy(transfer.id, other, below, checksums_of(transfer.sources)))
            self._num_bytes[tier, "out"] += num_bytes
        return transfer
