"""Admission: who of those that wait may run, and who gives memory up for whom."""

from __future__ import annotations

import sys

import attrs
import trio

from llmos.errors import OutOfFrames, OutOfSpaces
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Pid, Process
from llmos.sched.residents import Residents
from llmos.sched.runqueue import service_of
from llmos.sched.switch import ContextSwitch
from syscalls.process import ExitStatus

GROWTH_TOKENS = 32  # that admission leaves room for, for each process that runs


@attrs.define(eq=False)
class Admission:
    """Shows the policy what there is and carries out what it decides: one for each device."""

    residents: Residents
    # Those that could not grow and wait for frames that a copy out still reads: admission leaves them theirs.
    _growing: set[Pid] = attrs.field(init=False, factory=set)

    def admit(self, switch: ContextSwitch) -> None:
        """Let waiting processes run as the policy says."""
        residents, queue, policy = self.residents, self.residents.queue, self.residents.policy
        residents.admission_is_due = False
        residents.recorder.note_shortage(False)
        while queue.waiting:
            num_free, num_free_soon = self._num_free_frames(switch)
            pids, has_spaces = policy.admit(queue.view(num_free, residents.max_running)), True
            for pid in pids:
                try:
                    self._start(switch, queue.members[Pid(pid)])
                except OutOfSpaces:
                    pids, has_spaces = [], False
                    break
            if queue.num_places_taken >= residents.max_running:
                return
            if pids:
                continue
            residents.recorder.note_shortage(True)
            # Nobody fits. Memory of those that do not run (stopped, waiting for input) is given up first.
            head = self._head()
            if head is None:
                return  # caps of their own hold all of them back
            if self._kill_if_too_large(switch, head):
                continue
            if has_spaces and switch.frames_needed(head) <= num_free_soon:
                return  # a copy out that is under way makes the room
            idle = [p for p in queue.members.values() if p.space and p.state is not ProcState.RUNNING]
            if not any(p is not head for p in idle):
                return
            victim = policy.victim(queue.view(0, residents.max_running), head.pid)
            if victim is None or queue.members[Pid(victim)].state is ProcState.RUNNING:
                return
            residents.preempt(queue.members[Pid(victim)], head)

    def _start(self, switch: ContextSwitch, process: Process) -> None:
        """Give a process its memory, and let it run once that is there. Raises OutOfSpaces."""
        first_time = process.first_step_at is None and process.space is None
        switch.switch_in(process)
        if first_time:
            self.residents.num_cached_tokens += process.num_cached_tokens
        process.service_at_admission = service_of(process)
        if process.resident_since is None:
            process.resident_since = trio.current_time()
        state = ProcState.BLOCKED if process.num_arriving else ProcState.RUNNING
        self.residents.set_state(process, state)

    def _head(self) -> Process | None:
        """Whom the policy would let run next if there were memory and a place; None: nobody."""
        queue = self.residents.queue
        chosen = self.residents.policy.admit(queue.view(sys.maxsize, queue.num_places_taken + 1))
        return queue.members[Pid(chosen[0])] if chosen else None

    def _kill_if_too_large(self, switch: ContextSwitch, process: Process) -> bool:
        """The last resort. Whoever fits alone runs in the end, since everybody else's memory can be taken.

        Spawn and write refuse what could never fit, so this is for a device that came back with less memory.
        """
        vmm, residents = switch.vmm, self.residents
        needed = vmm.kv.num_pages(process.next_length) * vmm.kv.frames_per_page
        if needed <= vmm.num_frames:
            return False
        reason = (
            f"out of memory: {len(process.tokens)} tokens need {needed} frames; "
            f"{residents.device} has {vmm.num_frames} in all"
        )
        residents.on_event("oom", f"killed pid {process.pid} of {process.tenant}: {reason}")
        residents.terminate(process, ExitStatus("error", message=reason))
        return True

    # --- giving way --------------------------------------------------------------------------------------

    def review(self, switch: ContextSwitch) -> None:
        """Take memory from those that the policy says should give way to others; admission follows."""
        residents, queue = self.residents, self.residents.queue
        if not queue.waiting:
            return
        _, num_free = self._num_free_frames(switch)
        pids = residents.policy.give_way(queue.view(num_free, residents.max_running))
        if not pids:
            return
        head = self._head()
        has_memory = head is not None and switch.frames_needed(head) <= num_free
        for pid in pids:
            process = queue.members[Pid(pid)]
            if head is not None and has_memory and switch.vmm.num_free_spaces > 1:
                residents.set_aside(process, head)
            else:
                residents.preempt(process, head)

    def keep_within_caps(self) -> None:
        """Preempt processes of tenants that hold, or wait for, more memory than they may have."""
        caps, queue = self.residents.caps, self.residents.queue
        while (victim := caps.choose_victim(queue.members.values(), queue.order)) is not None:
            self.residents.preempt(victim)

    def make_room(
        self, switch: ContextSwitch, process: Process, start: int, end: int, placed: set[Pid]
    ) -> bool:
        """Preempt by policy until a process can grow.

        Args:
            switch: of the device.
            process: has found no frames for positions [start, end).
            start: first position that it will write.
            end: one past the last.
            placed: those that have a row in the step already: they keep what they have.

        Returns:
            False when it must sit this step out: its own memory was given up, or a copy out that is under way
            will make the room.
        """
        assert process.space is not None
        residents, queue = self.residents, self.residents.queue
        vmm, transfers = switch.vmm, switch.swap.transfers
        while True:
            if transfers:
                needed = vmm.pager.frames_needed(process.space, start, end)
                if needed <= vmm.num_allocatable_frames + transfers.num_leaving_frames:
                    self._growing.add(process.pid)
                    return False
            view = queue.view(0, residents.max_running, excluding=placed)
            victim = residents.policy.victim(view, process.pid)
            if victim is None:
                residents.preempt(process)
                return False
            residents.preempt(queue.members[Pid(victim)], process)
            try:
                vmm.pager.grow(process.space, start, end)
            except OutOfFrames:
                continue
            return True

    def _num_free_frames(self, switch: ContextSwitch) -> tuple[int, int]:
        """Frames that admission may hand out now, and when the copies out that are under way have ended.

        They are free or cached, and not wanted soon by those who run: without some for their growth, whoever
        is admitted last would be stopped again a few steps later. What copies out will leave is as good
        for growth as what is free, since it is there some steps before it is wanted. Negative when there is
        less than they want.
        """
        vmm, queue = switch.vmm, self.residents.queue
        num_leaving = switch.swap.transfers.num_leaving_frames
        growth = vmm.kv.num_pages(GROWTH_TOKENS * queue.num_places_taken)  # pages, on average
        growth_frames = growth * vmm.kv.frames_per_page
        promised = 0
        growing = set()
        for process in (*queue.running, *queue.arriving.values()):
            # Prompts are mapped as they are computed: what they will take is free now, and not for others.
            if process.num_uncomputed > 1 or process.pid in self._growing:
                needed = switch.frames_needed(process)
                promised += needed
                if needed and process.pid in self._growing:
                    growing.add(process.pid)
        self._growing = growing
        num_free = vmm.num_allocatable_frames - promised
        return num_free - max(0, growth_frames - num_leaving), num_free + num_leaving - growth_frames
