"""Copies between the tiers of memory that are under way.

Such a copy holds a reference to each of its frames and slots, and that is the whole fence: a frame whose
bytes are still being read has two users, so whoever wants to write there gets a page of its own, and a frame
that is still being filled is nobody's until its copy has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from llmos.device import Copy, CopyDone, Place, Tier
from llmos.mm.copy_store import CopyStore
from llmos.mm.page_copy import CopyState, PageCopy
from llmos.mm.page_table import PageFrames
from llmos.mm.references import PageReferences
from llmos.mm.transfer import Direction, Finish, Transfer, checksums_of, in_runs

CONSEQUENCES = {  # of pages that could not be copied
    Direction.OUT: "those tokens are computed again",
    Direction.IN: "those tokens are computed again",
    Direction.DOWN: "what was not bad stays in the host area",
    Direction.SAVE: "those pages are not in the image",
}


class Transfers:
    """Starts copies, and takes in what the device says of them.

    Args:
        references: to the frames of the device.
        copies: what lies on the lower tiers.
        frame_bytes: size of a frame, and of a slot.
        on_fault: told of each copy with pages that could not be copied or trusted, in words.
    """

    def __init__(
        self, references: PageReferences, copies: CopyStore, frame_bytes: int, on_fault: Callable[[str], None]
    ) -> None:
        self.num_faults = self.num_beside_steps = 0  # see SwapStatistics
        self.num_bytes_out: Counter[Tier] = Counter()  # to each tier, since boot
        self.num_bytes_in: Counter[Tier] = Counter()  # from each tier
        self._references = references
        self._copies = copies
        self._frame_bytes = frame_bytes
        self._on_fault = on_fault
        self._in_flight: dict[int, Transfer] = {}
        self._messages: list[Copy] = []
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._in_flight)

    def __iter__(self) -> Iterator[Transfer]:
        return iter(self._in_flight.values())

    def start(
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
        num_bytes = len(other.slots) * self._frame_bytes
        transfer = Transfer(
            self._last_id, direction, tier, copies, frames, vpns, num_bytes, on_end, sources or []
        )
        self._in_flight[transfer.id] = transfer
        for copy in (*copies, *transfer.sources):
            copy.num_transfers += 1
            self._copies.settle(copy)
        self._references.fence(frames)
        below = Place(tier, in_runs([copy.slots for copy in copies]), copies[0].path)
        if direction is Direction.IN:
            self._messages.append(Copy(transfer.id, below, other, checksums_of(copies)))
            self.num_bytes_in[tier] += num_bytes
        else:
            self._messages.append(Copy(transfer.id, other, below, checksums_of(transfer.sources)))
            self.num_bytes_out[tier] += num_bytes
        return transfer

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
        self.num_beside_steps += oldest_step is not None and oldest_step <= transfer.last_step
        num_pages = len(transfer.vpns)
        bad_sources: set[int] = set()  # their pages
        for fault in done.faults:
            transfer.faults.setdefault(transfer.vpns[fault.index % num_pages], fault.message)
            if fault.is_source:
                bad_sources.add(transfer.vpns[fault.index % num_pages])
        self.num_faults += len(transfer.faults)
        self._report(transfer)
        for copy in (*transfer.pages, *transfer.sources):
            copy.num_transfers -= 1
        for i, (vpn, copy) in enumerate(zip(transfer.vpns, transfer.pages, strict=True)):
            if vpn in transfer.faults:
                self._copies.lose(copy)
                if transfer.sources and vpn in bad_sources:
                    self._copies.lose(transfer.sources[i])
            elif copy.state is CopyState.LOST:
                pass  # given up meanwhile
            elif transfer.direction is Direction.IN:
                self._copies.remember(transfer.frames[i], copy)
            else:
                copy.state = CopyState.WHOLE
                copy.checksums = done.checksums[i::num_pages]
        if transfer.on_end is not None:
            transfer.on_end(transfer)
        for copy in (*transfer.pages, *transfer.sources):
            self._copies.settle(copy)
        self._references.unfence(transfer.frames)
        return transfer

    def _report(self, transfer: Transfer) -> None:
        """Tell of a copy's faults, in one message, and write no more where there may be no room."""
        if not transfer.faults:
            return
        message, num_others = next(iter(transfer.faults.values())), len(transfer.faults) - 1
        message += f", and {num_others} more pages alike" if num_others else ""
        self._on_fault(f"{message}; {CONSEQUENCES[transfer.direction]}")
        if transfer.tier == "disk" and transfer.direction is not Direction.IN:
            self._copies.pause("disk")

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
        lost, self._in_flight = list(self), {}
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

    @property
    def is_demoting(self) -> bool:
        """Is a copy from the host area to the swap file under way?"""
        return any(transfer.direction is Direction.DOWN for transfer in self)

    @property
    def num_leaving_frames(self) -> int:
        """Frames that nobody but a copy out refers to: they will be free when it ends."""
        return sum(
            self._references.is_only_fenced(frames) * len(frames)
            for transfer in self
            for frames in transfer.frames
        )
