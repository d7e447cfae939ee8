"""Pageout: memory goes to lower tiers before somebody waits for it.

Named for the daemon that does the same for files and anonymous memory in other systems.
"""

from __future__ import annotations

import attrs
import trio

from llmos.mm.transfer import Transfer
from llmos.proc.pcb import Process
from llmos.sched.residents import Residents
from llmos.sched.switch import ContextSwitch

MAX_COPIES_TO_CLEAN = 4  # in flight; beyond them pages of running processes are not copied in advance
AMPLE_MEMORY = 0.25  # of a device's frames: with so many to be had they are not copied in advance, either


@attrs.define(eq=False)
class Pageout:
    """Copies out what one device's processes can do without, or will probably have to give up."""

    residents: Residents

    def clean(self, switch: ContextSwitch) -> None:
        """While others wait, and little is being copied: copy the running process that has most to be copied.

        Whoever gives way later gives frames that are free at once, and is brought back but for a few tokens.
        Where much of the memory is free, nobody will have to give any.
        """
        vmm, queue = switch.vmm, self.residents.queue
        if vmm.num_allocatable_frames > AMPLE_MEMORY * vmm.num_frames:
            return
        if not queue.waiting or len(switch.swap.transfers) >= MAX_COPIES_TO_CLEAN:
            return
        size = vmm.kv.tokens_per_page

        def num_dirty_pages(process: Process) -> int:
            return process.num_computed // size - len(process.backing.pages)

        dirtiest = max(queue.running, key=num_dirty_pages, default=None)
        if dirtiest is not None and num_dirty_pages(dirtiest) > 0:
            dirtiest.num_bytes_cleaned += switch.clean(dirtiest)

    def sweep(self, switch: ContextSwitch, idle_seconds: float) -> None:
        """Swap out who has waited for input for so long; it comes back with the next write."""
        now = trio.current_time()
        for process in self.residents.queue.members.values():
            if process.space is None or process.idle_since is None or process.num_arriving:
                continue
            if now - process.idle_since >= idle_seconds and switch.can_keep(process):
                out = switch.switch_out(process, keep=True)
                self.residents.recorder.note_swap(process, out)
                self.residents.charge_residency(process, now)
                self.residents.admission_is_due = True

    def depart(self, transfer: Transfer) -> None:
        """A copy out has ended: its frames are free, and the host area is perhaps full."""
        self.residents.admission_is_due = True
        assert self.residents.switch is not None
        self._demote(self.residents.switch)

    def _demote(self, switch: ContextSwitch) -> None:
        """Keep some of the host area free: who will be away longest goes on to the swap file."""
        if not switch.swap.copies.is_host_short or switch.swap.transfers.is_demoting:
            return
        queue = self.residents.queue
        away = [process for process in queue.members.values() if process.backing.is_needed]
        idle = [process for process in away if process.idle_since is not None]
        idle.sort(key=lambda process: process.idle_since or 0.0)
        others = [process for process in away if process.idle_since is None]
        others.sort(key=queue.order, reverse=True)
        for process in (*idle, *others):
            if switch.swap.demote(process.backing, self.depart) is not None:
                return  # one at a time: its end looks again
