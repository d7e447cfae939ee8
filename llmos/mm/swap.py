"""Swap: pages of processes on the tiers below the device, and what is sent there and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from attrs import frozen

from llmos.device import Place, Tier
from llmos.errors import KernelPanic
from llmos.mm.address_space import AddressSpace
from llmos.mm.copy_store import CopyStore
from llmos.mm.page_copy import Backing, CopyState, PageCopy
from llmos.mm.page_table import PageFrames
from llmos.mm.transfer import Direction, Finish, Transfer, in_runs
from llmos.mm.transfers import Transfers
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
    """Moves pages of one device between it and the tiers below.

    `copies` says what lies there, `transfers` what is on its way there or back.

    Args:
        vmm: of the device.
        num_slots: of "host" and "disk".
        on_fault: told of each copy with pages that could not be copied or trusted, in words.
        reuse: keep copies when their pages are back, so that next time only what is new is sent.
        clock: seconds, never going back.

    Source: Shen et al. 2024, FastSwitch.
    """

    def __init__(
        self,
        vmm: VMM,
        num_slots: dict[Tier, int],
        on_fault: Callable[[str], None],
        reuse: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.vmm = vmm
        self.copies = CopyStore(num_slots, vmm.kv.frames_per_page, vmm.references.generation, reuse, clock)
        self.transfers = Transfers(vmm.references, self.copies, vmm.kv.frame_bytes, on_fault)
        self._num_clean_bytes = 0

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
        return self.transfers.start(
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
        self.vmm.pager.share(space, pages)
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
            transfers.append(
                self.transfers.start(Direction.IN, tier, copies, frames, vpns, target, on_end=on_end)
            )
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
        return self.transfers.start(
            Direction.DOWN, "disk", copies, [], vpns, source, on_end=move, sources=sources
        )

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
                self.transfers.start(
                    Direction.SAVE, "file", copies, frames, vpns, source, on_end=on_end, sources=sources
                )
            )
        return transfers

    # --- all of it ---------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The device is gone, and the tiers below with it; files are not."""
        self.transfers.reset()
        self.copies.reset()

    def statistics(self) -> SwapStatistics:
        """Count."""
        transfers = self.transfers
        return SwapStatistics(
            tiers={
                tier: TierStatistics(
                    area.num_slots,
                    area.num_free,
                    transfers.num_bytes_out[tier],
                    transfers.num_bytes_in[tier],
                )
                for tier, area in self.copies.areas.items()
            },
            num_in_flight=len(transfers),
            num_beside_steps=transfers.num_beside_steps,
            num_clean_bytes=self._num_clean_bytes,
            num_faults=transfers.num_faults,
            num_dropped=self.copies.num_dropped,
            num_file_bytes_out=transfers.num_bytes_out["file"],
            num_file_bytes_in=transfers.num_bytes_in["file"],
        )

    def check_integrity(self, backings: Sequence[Backing]) -> None:
        """Raise KernelPanic unless every slot is free, or held by a copy that somebody uses or a transfer."""
        in_transfers = {copy for each in self.transfers for copy in (*each.pages, *each.sources)}
        self.copies.check_integrity(backings, in_transfers)
