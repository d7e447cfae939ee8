"""Residency on one device: who holds memory, who runs, and how a process leaves.

The sched/core actor owns one of these and changes it between steps; nothing here waits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import attrs
import structlog
import trio

from llmos.device import Compiled, KVFormat
from llmos.errors import OutOfFrames, OutOfSpaces
from llmos.mm.transfer import Transfer
from llmos.proc.lifecycle import WAITING, BlockReason, Grammar, Input, Prefill, ProcState, Swap, move
from llmos.proc.pcb import Pid, Process
from llmos.sched.accounts import Accounts
from llmos.sched.caps import Caps
from llmos.sched.fair import TokenFair
from llmos.sched.grammars import Grammars
from llmos.sched.policy import ResidencyPolicy
from llmos.sched.recorder import Recorder
from llmos.sched.runqueue import RunQueue, service_of
from llmos.sched.switch import ContextSwitch
from syscalls.process import ExitStatus

log = structlog.get_logger("residents")

MAX_COPIES_TO_CLEAN = 4  # in flight; beyond them pages of running processes are not copied in advance
AMPLE_MEMORY = 0.25  # of a device's frames: with so many to be had they are not copied in advance, either

GROWTH_TOKENS = 32  # that admission leaves room for, for each process that runs


@attrs.define(eq=False, kw_only=True)
class Residents:
    """The processes of one device and their memory.

    Args:
        device: its name.
        policy: who is resident.
        accounts: charged for what tenants are served.
        max_running: most processes that run at once.
        on_exit: called with each process as it becomes a zombie.
        on_event: told, with a subsystem, of what an operator should know.
    """

    device: str
    policy: ResidencyPolicy
    accounts: Accounts
    max_running: int
    on_exit: Callable[[Process], None]
    on_event: Callable[[str, str], None] = lambda subsystem, text: None
    switch: ContextSwitch | None = None  # None until a driver has loaded a model
    grammars: Grammars = attrs.field(init=False, factory=Grammars)
    caps: Caps = attrs.field(init=False)
    queue: RunQueue = attrs.field(init=False)
    recorder: Recorder = attrs.field(init=False)
    admission_is_due: bool = False  # something changed: the policy is to be asked
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    # Those that could not grow and wait for frames that a copy out still reads: admission leaves them theirs.
    _growing: set[Pid] = attrs.field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        self.caps = Caps(self.accounts, self._kv, self._frames_needed)
        self.queue = RunQueue(self.policy, self.accounts, self._frames_needed, self._frames_held, self.caps)
        self.recorder = Recorder(self.accounts, self.policy.name == TokenFair.name)

    # --- in and out of memory -----------------------------------------------------------------------------

    def admit(self) -> None:
        """Let waiting processes run as the policy says."""
        assert self.switch is not None
        self.admission_is_due = False
        self.recorder.note_shortage(False)
        while self.queue.waiting:
            num_free, num_free_soon = self._num_free_frames()
            view = self.queue.view(num_free, self.max_running)
            pids, has_spaces = self.policy.admit(view), True
            for pid in pids:
                process = self.queue.members[Pid(pid)]
                first_time = process.first_step_at is None and process.space is None
                try:
                    self.switch.switch_in(process)
                except OutOfSpaces:
                    pids, has_spaces = [], False
                    break
                if first_time:
                    self.num_cached_tokens += process.num_cached_tokens
                self._begin_service(process)
                self.set_state(process, ProcState.BLOCKED if process.num_arriving else ProcState.RUNNING)
            if self.queue.num_places_taken >= self.max_running:
                return
            if pids:
                continue
            self.recorder.note_shortage(True)
            # Nobody fits. Memory of those that do not run (stopped, waiting for input) is given up first.
            waited_for = self.policy.admit(self.queue.view(sys.maxsize, self.queue.num_places_taken + 1))
            if not waited_for:
                return  # caps of their own hold all of them back
            head = self.queue.members[Pid(waited_for[0])]  # whom the policy waits for
            if self._kill_if_too_large(head):
                continue
            if has_spaces and self._frames_needed(head) <= num_free_soon:
                return  # a copy out that is under way makes the room
            idle = [p for p in self.queue.members.values() if p.space and p.state is not ProcState.RUNNING]
            if not any(p is not head for p in idle):
                return
            victim = self.policy.victim(self.queue.view(0, self.max_running), head.pid)
            if victim is None or self.queue.members[Pid(victim)].state is ProcState.RUNNING:
                return
            self.preempt(self.queue.members[Pid(victim)], head)

    def _kill_if_too_large(self, process: Process) -> bool:
        """The last resort. Whoever fits alone runs in the end, since everybody else's memory can be taken.

        Spawn and write refuse what could never fit, so this is for a device that came back with less memory.
        """
        assert self.switch is not None
        vmm = self.switch.vmm
        needed = vmm.kv.num_pages(process.next_length) * vmm.kv.frames_per_page
        if needed <= vmm.num_frames:
            return False
        reason = (
            f"out of memory: {len(process.tokens)} tokens need {needed} frames; "
            f"{self.device} has {vmm.num_frames} in all"
        )
        self.on_event("oom", f"killed pid {process.pid} of {process.tenant}: {reason}")
        self.terminate(process, ExitStatus("error", message=reason))
        return True

    def _demote(self) -> None:
        """Keep some of the host area free: who will be away longest goes on to the swap file."""
        assert self.switch is not None
        if not self.switch.swap.copies.is_host_short or self.switch.swap.is_demoting:
            return
        away = [process for process in self.queue.members.values() if process.backing.is_needed]
        idle = [process for process in away if process.idle_since is not None]
        idle.sort(key=lambda process: process.idle_since or 0.0)
        others = [process for process in away if process.idle_since is None]
        others.sort(key=self.queue.order, reverse=True)
        for process in (*idle, *others):
            if self.switch.swap.demote(process.backing, self.depart) is not None:
                return  # one at a time: its end looks again

    def keep_within_caps(self) -> None:
        """Preempt processes of tenants that hold, or wait for, more memory than they may have."""
        members = self.queue.members
        while (victim := self.caps.choose_victim(members.values(), self.queue.order)) is not None:
            self.preempt(victim)

    def review(self) -> None:
        """Take memory from those that the policy says should give way to others; admission follows."""
        assert self.switch is not None
        if not self.queue.waiting:
            return
        _, num_free = self._num_free_frames()
        pids = self.policy.give_way(self.queue.view(num_free, self.max_running))
        if not pids:
            return
        chosen = self.policy.admit(self.queue.view(sys.maxsize, self.queue.num_places_taken + 1))
        head = self.queue.members[Pid(chosen[0])] if chosen else None
        has_memory = head is not None and self._frames_needed(head) <= num_free
        for pid in pids:
            process = self.queue.members[Pid(pid)]
            if head is not None and has_memory and self.switch.vmm.num_free_spaces > 1:
                self._set_aside(process, head)
            else:
                self.preempt(process, head)

    def _begin_service(self, process: Process) -> None:
        """Account for an admission."""
        process.service_at_admission = service_of(process)
        if process.resident_since is None:
            process.resident_since = trio.current_time()

    def charge_prompt(self, process: Process, start: int, end: int) -> None:
        """Charge for input that is computed for the first time.

        What lies before `start` is in memory and was computed by others, or charged for earlier.
        """
        num_behind = min(process.num_uncharged, process.turn_start - start)
        num_left = min(num_behind, max(0, process.turn_start - end))
        self.accounts.of(process.tenant).charge_prompt(num_behind - num_left)
        process.num_uncharged = num_left

    def charge_residency(self, process: Process, now: float) -> None:
        """Charge for the memory that a process has held since this was last called."""
        if process.resident_since is not None:
            seconds = now - process.resident_since
            self.accounts.of(process.tenant).charge_residency(seconds * len(process.tokens))
            process.resident_since = now if process.space is not None else None

    def charge_all_residency(self) -> None:
        """Charge everybody who holds memory; to be called now and then."""
        now = trio.current_time()
        for process in self.queue.members.values():
            self.charge_residency(process, now)

    def make_room(self, process: Process, start: int, end: int, placed: set[Pid]) -> bool:
        """Preempt by policy until the process can grow.

        Returns:
            False when it must sit this step out: its own memory was given up, or a copy out that is under way
            will make the room.
        """
        assert self.switch is not None
        assert process.space is not None
        vmm, swap = self.switch.vmm, self.switch.swap
        while True:
            if swap.num_in_flight:
                needed = vmm.frames_needed(process.space, start, end)
                if needed <= vmm.num_allocatable_frames + swap.num_leaving_frames:
                    self._growing.add(process.pid)
                    return False
            view = self.queue.view(0, self.max_running, excluding=placed)
            victim = self.policy.victim(view, process.pid)
            if victim is None:
                self.preempt(process)
                return False
            self.preempt(self.queue.members[Pid(victim)], process)
            try:
                vmm.grow(process.space, start, end)
            except OutOfFrames:
                continue
            return True

    def _set_aside(self, process: Process, by: Process) -> None:
        """Take a process's place and leave it its memory, which nobody wants now."""
        self.recorder.note_set_aside(process, by)
        self._count_preemption(process)
        log.info("set aside", device=self.device, pid=process.pid, num_tokens=len(process.tokens))

    def preempt(self, process: Process, by: Process | None = None) -> None:
        """Take a process's memory for another one, or for nobody in particular, by the cheaper way.

        If it ran, it waits to run again.
        """
        assert self.switch is not None
        num_computed = process.num_computed
        out = self.switch.switch_out(process, keep=True)
        self.recorder.note_preemption(process, by, num_computed, out)
        self._count_preemption(process)
        log.info(
            "preempt",
            device=self.device,
            pid=process.pid,
            num_tokens=len(process.tokens),
            num_kept_tokens=out.num_kept_tokens,
            num_bytes=out.num_bytes,
            tier=out.tier,
        )

    def take_all_memory(self) -> None:
        """Preempt everybody who holds memory, but those whose memory is still on its way."""
        for process in list(self.queue.members.values()):
            if process.space is not None and not process.num_arriving:
                self.preempt(process)

    def _count_preemption(self, process: Process) -> None:
        self.charge_residency(process, trio.current_time())
        process.num_preemptions += 1
        self.num_preemptions += 1
        to = process.ready_state
        if process.state in (ProcState.RUNNING, ProcState.READY) and process.state is not to:
            self.set_state(process, to)
        self.admission_is_due = True

    def clean(self) -> None:
        """While others wait, and little is being copied: copy the running process that has most to be copied.

        Whoever gives way later gives frames that are free at once, and is brought back but for a few tokens.
        Where much of the memory is free, nobody will have to give any.
        """
        assert self.switch is not None
        vmm = self.switch.vmm
        if vmm.num_allocatable_frames > AMPLE_MEMORY * vmm.num_frames:
            return
        is_busy = self.switch.swap.num_in_flight >= MAX_COPIES_TO_CLEAN
        if not self.queue.waiting or is_busy:
            return
        size = vmm.kv.tokens_per_page

        def num_dirty_pages(process: Process) -> int:
            return process.num_computed // size - len(process.backing.pages)

        dirtiest = max(self.queue.running, key=num_dirty_pages, default=None)
        if dirtiest is not None and num_dirty_pages(dirtiest) > 0:
            dirtiest.num_bytes_cleaned += self.switch.clean(dirtiest)

    def sweep(self, idle_seconds: float) -> None:
        """Swap out who has waited for input for so long; it comes back with the next write."""
        assert self.switch is not None
        now = trio.current_time()
        for process in self.queue.members.values():
            if process.space is None or process.idle_since is None or process.num_arriving:
                continue
            if now - process.idle_since >= idle_seconds and self.switch.can_keep(process):
                out = self.switch.switch_out(process, keep=True)
                self.recorder.note_swap(process, out)
                self.charge_residency(process, now)
                self.admission_is_due = True

    def arrive(self, process: Process, transfer: Transfer) -> None:
        """A copy of a process's memory back to the device has ended; without others it can run."""
        process.timeline.swapped_in(trio.current_time(), transfer.num_bytes, transfer.seconds, transfer.tier)
        if process.num_arriving:
            return
        if process.state is ProcState.BLOCKED and process.pid in self.queue.arriving:
            self.set_state(process, ProcState.RUNNING)
        self.admission_is_due = True

    def depart(self, transfer: Transfer) -> None:
        """A copy out has ended: its frames are free."""
        self.admission_is_due = True
        self._demote()

    def _num_free_frames(self) -> tuple[int, int]:
        """Frames that admission may hand out now, and when the copies out that are under way have ended.

        They are free or cached, and not wanted soon by those who run: without some for their growth, whoever
        is admitted last would be stopped again a few steps later. What copies out will leave is as good
        for growth as what is free, since it is there some steps before it is wanted. Negative when there is
        less than they want.
        """
        assert self.switch is not None
        vmm, num_leaving = self.switch.vmm, self.switch.swap.num_leaving_frames
        growth = vmm.kv.num_pages(GROWTH_TOKENS * self.queue.num_places_taken)  # pages, on average
        growth_frames = growth * vmm.kv.frames_per_page
        promised = 0
        growing = set()
        for process in (*self.queue.running, *self.queue.arriving.values()):
            # Prompts are mapped as they are computed: what they will take is free now, and not for others.
            if process.num_uncomputed > 1 or process.pid in self._growing:
                needed = self._frames_needed(process)
                promised += needed
                if needed and process.pid in self._growing:
                    growing.add(process.pid)
        self._growing = growing
        num_free = vmm.num_allocatable_frames - promised
        return num_free - max(0, growth_frames - num_leaving), num_free + num_leaving - growth_frames

    def release_heirs(self, elder: Process) -> None:
        """Let the siblings that wait for this prefill go on, over its pages where they are there."""
        assert self.switch is not None
        for heir in elder.heirs:
            if heir.state is ProcState.ZOMBIE:
                continue
            if heir.space is None and elder.space is not None:
                self.share_if_room(elder, heir, min(elder.num_scheduled, len(heir.tokens) - 1))
            if heir.state is ProcState.BLOCKED:
                self.set_state(heir, heir.ready_state)
        elder.heirs = []
        self.admission_is_due = True

    def share_if_room(self, elder: Process, heir: Process, num_tokens: int) -> None:
        """Let `heir` start from the elder's pages; without a free space, from the prefix index later."""
        assert self.switch is not None
        if num_tokens > 0:
            try:
                self.switch.share(elder, heir, num_tokens)
            except OutOfSpaces:
                log.info("fork_without_space", device=self.device, pid=heir.pid)

    # --- the end of a turn, and of a process --------------------------------------------------------------

    def end_turn(self, process: Process, status: ExitStatus) -> None:
        if not process.interactive:
            self.terminate(process, status)
            return
        # A step in flight may compute the end token's position: valid memory, but its sample is not wanted.
        process.epoch += 1
        process.num_pending = 0
        process.num_scheduled = process.num_computed = min(process.num_scheduled, len(process.tokens))
        process.bound = False
        process.status = status
        process.idle_since = trio.current_time()
        if process.state is not ProcState.STOPPED:
            self.set_state(process, ProcState.BLOCKED)
        self.admission_is_due = True
        process.wake_readers()

    def terminate(self, process: Process, status: ExitStatus, *, is_clean: bool = True) -> None:
        """End a process in whatever state; its memory is free on return. Does nothing to a zombie."""
        if process.state is ProcState.ZOMBIE:
            return
        if self.switch is not None:
            if process.heirs:
                self.release_heirs(process)
            self.switch.switch_out(process, is_clean=is_clean)
            self.charge_residency(process, trio.current_time())
        self.queue.forget(process)
        self.grammars.leave(process)
        move(process, ProcState.ZOMBIE)
        process.status = status
        process.ended_at = trio.current_time()
        self.recorder.note_state(process)
        self.admission_is_due = True
        self.on_exit(process)
        process.wake_readers()
        callbacks, process.exit_callbacks = process.exit_callbacks, []
        for callback in callbacks:
            callback(process)

    def lose_memory(self) -> None:
        """The device's memory is gone, no process is: they recompute when a driver is back."""
        if self.switch is not None:
            self.switch.reset()
        self.grammars.reset()
        for process in list(self.queue.members.values()):
            if process.space is not None:
                process.timeline.device_lost(trio.current_time(), process.num_computed)
            if self.switch is not None:
                self.switch.swap.copies.forget(process.backing)
            wants_to_run = process.state in (ProcState.RUNNING, *WAITING)
            wants_to_run = wants_to_run or process.pid in self.queue.arriving
            process.num_arriving = process.num_bytes_cleaned = 0
            process.space = None
            process.resident_since = None  # nobody pays for a driver that died
            process.epoch += 1
            process.num_pending = process.num_scheduled = process.num_computed = 0
            process.bound = False
            process.backing.set_needed(True)
            state = process.ready_state
            if wants_to_run and (process.state is not state or state is ProcState.BLOCKED):
                self.set_state(process, state)

    def finish_grammar(self, result: Compiled) -> bool:
        """Let those go on that waited for a grammar, or end all that follow one that cannot be followed.

        Returns:
            False: the device was not asked for it.
        """
        grammar = self.grammars.finish(result)
        if grammar is None:
            return False
        for process in [each for each in self.queue.members.values() if each.grammar is grammar]:
            if result.problem is not None:
                self.terminate(process, ExitStatus("error", message=result.problem))
            elif isinstance(process.blocked_on, Grammar):
                self.set_state(process, process.ready_state)
        self.admission_is_due = True
        return True

    # --- small things -------------------------------------------------------------------------------------

    def begin(self, process: Process) -> None:
        """Let a process that has just come run, or wait for what it must. Mutates both."""
        self.set_state(process, ProcState.BLOCKED if process.turn_is_over else process.ready_state)

    def set_state(self, process: Process, state: ProcState) -> None:
        """Move a process and keep the queue in step."""
        reason = block_reason(process) if state is ProcState.BLOCKED else None
        self.queue.change(process, lambda: move(process, state, reason))
        self.recorder.note_state(process, len(self.queue.waiting))

    def _kv(self) -> KVFormat:
        assert self.switch is not None
        return self.switch.vmm.kv

    def _frames_needed(self, process: Process) -> int:
        assert self.switch is not None
        return self.switch.frames_needed(process)

    def _frames_held(self, process: Process) -> int:
        assert self.switch is not None
        return self.switch.frames_held(process)

    def check_integrity(self) -> None:
        """Raise AssertionError where queue, processes and memory contradict each other."""
        for process in self.queue.members.values():
            process.check_integrity()
            assert not (process.waits_for_grammar and process.state in (ProcState.RUNNING, *WAITING)), process
            assert not isinstance(process.blocked_on, Grammar) or process.waits_for_grammar, process
        self.grammars.check_integrity(list(self.queue.members.values()))
        assert all(p.state in WAITING for p in self.queue.waiting)
        assert all(p.num_arriving and p.space for p in self.queue.arriving.values())
        assert all(p.state is ProcState.RUNNING and p.space for p in self.queue.running)
        if self.switch is not None:
            self.switch.vmm.check_integrity()
            self.switch.swap.check_integrity([p.backing for p in self.queue.members.values()])


def block_reason(process: Process) -> BlockReason:
    """What a process that goes BLOCKED now waits for."""
    if process.num_arriving:
        return Swap()
    if process.turn_is_over:
        return Input()
    if process.waits_for_grammar:
        return Grammar()
    assert process.parent is not None
    return Prefill(process.parent)
