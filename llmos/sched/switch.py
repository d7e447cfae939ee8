"""The context switch: gives a process its memory and takes it away, in one place.

A process that loses its memory has it copied to a lower tier, or computes it again, whichever is cheaper; its
tokens do not change, since the sample at a position depends on history, seed and position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import msgspec

from llmos.cost import StepWork
from llmos.device import Bind, Copy, Edit, Tier
from llmos.errors import OutOfFrames
from llmos.mm.page_table import PageFrames
from llmos.mm.swap import Swap
from llmos.mm.transfer import Direction, Transfer
from llmos.mm.vmm import VMM
from llmos.proc.pcb import Process
from llmos.sched.preemption import PreemptionCosts


@attrs.frozen
class SwitchedOut:
    """How a process lost its memory."""

    num_bytes: int = 0  # on their way to a lower tier; the rest has clean copies there
    num_kept_tokens: int = 0  # that it need not compute again
    tier: Tier | None = None  # where the bytes go; None: nowhere


@attrs.define(eq=False)
class ContextSwitch:
    """Memory side of a process's life on one device.

    Args:
        vmm: the device's memory.
        swap: the tiers below.
        costs: whether to copy or to compute again.
        on_arrival: called when a copy has brought some of a process's memory back; `num_arriving` are left.
        on_departure: called when a copy out has ended, and its frames are free.
    """

    vmm: VMM
    swap: Swap
    costs: PreemptionCosts
    on_arrival: Callable[[Process, Transfer], None]
    on_departure: Callable[[Transfer], None]
    _binds: dict[int, Bind] = attrs.field(factory=dict)  # by asid; sent with the next step

    def frames_needed(self, process: Process) -> int:
        """Frames to run what the process has now and one token more, beyond what it holds."""
        end = process.next_length
        if process.space is None:
            return self.vmm.kv.num_pages(end) * self.vmm.kv.frames_per_page
        return self.vmm.pager.frames_needed(process.space, process.num_scheduled, end)

    def frames_held(self, process: Process) -> int:
        """Frames that a process has mapped, those that it shares included."""
        return process.space.num_pages * self.vmm.kv.frames_per_page if process.space is not None else 0

    # --- in ----------------------------------------------------------------------------------------------

    def switch_in(self, process: Process) -> None:
        """Open an address space for a process that has none, over whatever is in memory already.

        What is on a lower tier is sent for: `num_arriving` is then above 0, and the process cannot run before
        `on_arrival`. Mutates the process. Raises OutOfSpaces.
        """
        if process.space is not None:
            return
        space = process.space = self.vmm.open_space(process.salt, process.tokens)
        limit = process.num_reusable
        copied = min(limit, process.backing.num_tokens(self.vmm.kv.tokens_per_page))
        covered = self.vmm.attach_prefix(space, process.tokens, limit, has=copied)
        covered = self.swap.attach(space, covered, limit, process.backing)
        process.num_scheduled = process.num_computed = covered
        if process.first_step_at is None and not process.backing.is_needed:
            process.num_cached_tokens = covered
        first, stop = covered // self.vmm.kv.tokens_per_page, self.vmm.kv.num_pages(copied)
        if covered < copied and self._is_worth_a_copy(process, first, stop, covered, copied):
            try:
                self.vmm.pager.grow(space, covered, copied)
            except OutOfFrames:
                pass  # others took them meanwhile: it computes what it can
            else:
                arrival = _Arrival(self, process, process.epoch, copied)
                transfers = self.swap.swap_in(space, first, stop, process.backing, arrival.note)
                process.num_arriving = len(transfers)
        if not process.num_arriving:
            self.swap.copies.set_needed(process.backing, False)

    def _is_worth_a_copy(self, process: Process, first: int, stop: int, start: int, end: int) -> bool:
        page_bytes = self.vmm.kv.page_bytes
        slowest: Tier = "host"
        for vpn in range(first, stop):
            copy = process.backing.usable(vpn)
            if copy is not None and copy.tier != "host":
                slowest = "disk"
        return self.costs.prefers_swap_in(start, end, (stop - first) * page_bytes, slowest)

    def share(self, elder: Process, heir: Process, num_tokens: int) -> None:
        """Give `heir` the first `num_tokens` positions of `elder`, copy-on-write. Mutates the heir."""
        assert elder.space is not None
        heir.space = self.vmm.fork_space(elder.space, num_tokens, heir.salt)
        heir.num_scheduled = heir.num_computed = num_tokens
        heir.num_cached_tokens = num_tokens

    def inherit(self, parent: Process, child: Process) -> None:
        """Give a child the copies of a parent that has no memory on the device. Mutates the child."""
        self.swap.copies.inherit(parent.backing, child.backing)

    def bind(self, process: Process) -> None:
        """Tell the device how the process samples, once for each time it has a space and for each turn."""
        if not process.bound:
            assert process.space is not None
            samples = process.pooling is None
            self._binds[process.space.asid] = Bind(
                asid=process.space.asid,
                sampling=msgspec.structs.replace(process.sampling, grammar=None),
                tokens=tuple(process.tokens) if samples else (),
                num_prompt_tokens=process.turn_start if samples else 0,
                stop_token_ids=tuple(sorted(process.stop_tokens)),
                min_tokens=process.min_tokens,
                mu=process.mu,
                pooling=process.pooling,
                num_summed=process.num_summed,
                total=process.total,
                grammar=None if process.grammar is None else process.grammar.id,
            )
            process.bound = True

    # --- out ---------------------------------------------------------------------------------------------

    def switch_out(
        self, process: Process, *, is_clean: bool = True, keep: bool = False, num_running: int | None = None
    ) -> SwitchedOut:
        """Take a process's memory; samples in flight are no longer for it. Mutates the process.

        Pages that hold tokens we know go to the prefix index, unless `is_clean` is false: then what the
        device wrote is not trusted.

        Args:
            process: may have no memory.
            is_clean: see above.
            keep: it will want it back: send down what that is cheaper for.
            num_running: processes that run, while somebody waits for the memory; None: nobody does.
        """
        process.epoch += 1
        process.num_pending = process.num_arriving = 0
        out = SwitchedOut()
        if process.space is not None:
            self._binds.pop(process.space.asid, None)
            known = process.tokens[: process.num_scheduled] if is_clean else []
            if keep and known:
                out = self._send_down(process, len(known), num_running)
            self.vmm.close_space(process.space, known, 0.0 if keep else process.pin_seconds)
            process.space = None
        if keep:
            self.swap.copies.set_needed(process.backing, True)
        else:
            self.swap.copies.abandon(process.backing)
        process.num_scheduled = process.num_computed = 0
        process.bound = False
        return out

    def _send_down(self, process: Process, num_tokens: int, num_running: int | None) -> SwitchedOut:
        """Copy what has no clean copy yet, if that is cheaper than to compute all of it again."""
        assert process.space is not None
        if not self.swap.copies.has_room():
            return SwitchedOut()
        dirty = self.swap.plan_out(process.space, num_tokens, process.backing)
        if not dirty:
            return SwitchedOut(num_kept_tokens=num_tokens)
        num_clean = process.backing.num_tokens(self.vmm.kv.tokens_per_page)
        is_waited_for = num_clean and num_running is not None
        if is_waited_for and self.costs.prefers_to_drop(num_clean, num_tokens, num_running or 0):
            return SwitchedOut(num_kept_tokens=num_clean)
        page_bytes = self.vmm.kv.page_bytes
        bytes_in = self.vmm.kv.num_pages(num_tokens) * page_bytes
        tier = self.swap.copies.tier_with_room(len(dirty))
        if tier is None or not self.costs.prefers_swap(num_tokens, len(dirty) * page_bytes, bytes_in, tier):
            return SwitchedOut(num_kept_tokens=num_clean)
        transfer = self.swap.swap_out(
            process.space, dirty, num_tokens, process.backing, tier, self.on_departure
        )
        return SwitchedOut(transfer.num_bytes, num_tokens, tier)

    def can_keep(self, process: Process) -> bool:
        """Is there room below for what has no copy yet of a process's memory? It may come to share copies."""
        assert process.space is not None
        num_tokens = min(process.num_scheduled, len(process.tokens))
        dirty = self.swap.plan_out(process.space, num_tokens, process.backing)
        return not dirty or self.swap.copies.tier_with_room(len(dirty)) is not None

    def clean(self, process: Process) -> int:
        """Copy whole pages of a process that runs on, so that its memory can be taken without a wait.

        Returns:
            Bytes on their way; 0: nothing was to be copied, there was no room, or computing is cheaper.
        """
        assert process.space is not None
        size = self.vmm.kv.tokens_per_page
        num_tokens = min(process.num_computed, len(process.tokens)) // size * size
        dirty = self.swap.plan_out(process.space, num_tokens, process.backing)
        page_bytes = self.vmm.kv.page_bytes
        bytes_in = num_tokens // size * page_bytes
        if not dirty or not self.swap.copies.has_free_host_pages(len(dirty)):
            return 0
        if not self.costs.prefers_swap(num_tokens, len(dirty) * page_bytes, bytes_in, "host"):
            return 0
        transfer = self.swap.swap_out(
            process.space, dirty, num_tokens, process.backing, "host", self.on_departure
        )
        return transfer.num_bytes

    # --- the device's side -------------------------------------------------------------------------------

    def take_edits(self) -> tuple[Edit, ...]:
        """Drain what the device must be told before its next step."""
        edits = self.vmm.take_edits()
        if self._binds:
            edits += tuple(self._binds.values())
            self._binds.clear()
        return edits

    def take_copies(self, last_step: int) -> list[tuple[Copy, list[PageFrames]]]:
        """Drain the copies to start, to be sent when the copies of pages that were queued before have been.

        With each the pages that it reads, or fills, of the device; none where it must wait for its turn.
        `last_step` is the one that the device is sent before them.
        """
        transfers = self.swap.transfers
        return [(copy, transfers.pages_used(copy)) for copy in transfers.take_messages(last_step)]

    def must_wait(self, running: Sequence[Process]) -> bool:
        """Should no step be issued before the copies under way have ended?"""
        if not self.swap.transfers or not running:
            return False
        arriving: dict[Tier, int] = {}
        owners = 0
        for transfer in self.swap.transfers:
            if transfer.direction is Direction.IN:
                arriving[transfer.tier] = arriving.get(transfer.tier, 0) + transfer.num_bytes
                owners += 1
        work = StepWork()
        for process in running:
            work = work.with_row(process.num_scheduled, 1)
        return self.costs.waits(arriving, owners, work)

    def reset(self) -> None:
        """The device lost its memory. Mutates nothing of the processes: the caller walks them."""
        self.vmm.reset()
        self.swap.reset()
        self._binds.clear()


@attrs.define(eq=False)
class _Arrival:
    """A process whose memory is on its way back, in one copy for each tier that it was on."""

    switch: ContextSwitch
    process: Process
    epoch: int
    num_tokens: int  # that it will have; fewer when a page turns out to be bad

    def note(self, transfer: Transfer) -> None:
        """One of the copies has ended."""
        process = self.process
        if process.epoch != self.epoch:
            return  # it lost that memory again, or is gone
        if transfer.faults:
            bad = min(transfer.faults) * self.switch.vmm.kv.tokens_per_page
            self.num_tokens = min(self.num_tokens, bad)
        process.num_arriving -= 1
        if not process.num_arriving:
            # What was attached before the copies were sent for stays good.
            process.num_scheduled = process.num_computed = max(process.num_computed, self.num_tokens)
            self.switch.swap.copies.set_needed(process.backing, False)
        self.switch.on_arrival(process, transfer)
