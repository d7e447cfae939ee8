"""The residents of one device: its processes, what they are charged, how they lose memory and how they leave.

The Core owns them and changes them between steps; nothing here waits. Who of them may run is Admission's
business.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import structlog
import trio

from llmos.device import Compiled, KVFormat
from llmos.errors import OutOfSpaces
from llmos.mm.transfer import Transfer
from llmos.proc.lifecycle import WAITING, BlockReason, Grammar, Input, Prefill, ProcState, Swap, move
from llmos.proc.pcb import Process
from llmos.sched.accounts import Accounts
from llmos.sched.caps import Caps
from llmos.sched.fair import TokenFair
from llmos.sched.grammars import Grammars
from llmos.sched.policy import ResidencyPolicy
from llmos.sched.recorder import Recorder
from llmos.sched.runqueue import RunQueue
from llmos.sched.switch import ContextSwitch
from syscalls.process import ExitStatus

log = structlog.get_logger("residents")


@attrs.define(eq=False, kw_only=True)
class Residents:
    """The processes of one device and their memory.

    Args:
        device: its name.
        policy: who is resident.
        accounts: charged for what tenants are served.
        max_running: most processes that run at once.
        on_exit: called with each process as it becomes a zombie.
        on_pause: called with each process that goes on only when somebody says so: it waits for input, or was
            stopped.
        on_event: told, with a subsystem, of what an operator should know.
    """

    device: str
    policy: ResidencyPolicy
    accounts: Accounts
    max_running: int
    on_exit: Callable[[Process], None]
    on_pause: Callable[[Process], None] = lambda process: None
    on_event: Callable[[str, str], None] = lambda subsystem, text: None
    switch: ContextSwitch | None = None  # None until a driver has loaded a model
    grammars: Grammars = attrs.field(init=False, factory=Grammars)
    caps: Caps = attrs.field(init=False)
    queue: RunQueue = attrs.field(init=False)
    recorder: Recorder = attrs.field(init=False)
    admission_is_due: bool = False  # something changed: the policy is to be asked
    num_preemptions: int = 0
    num_cached_tokens: int = 0

    def __attrs_post_init__(self) -> None:
        self.caps = Caps(self.accounts, self._kv, self._frames_needed)
        self.queue = RunQueue(self.policy, self.accounts, self._frames_needed, self._frames_held, self.caps)
        self.recorder = Recorder(self.accounts, self.policy.name == TokenFair.name)

    # --- states -------------------------------------------------------------------------------------------

    def begin(self, process: Process) -> None:
        """Let a process that has just come run, or wait for what it must. Mutates both."""
        self.set_state(process, ProcState.BLOCKED if process.turn_is_over else process.ready_state)

    def set_state(self, process: Process, state: ProcState) -> None:
        """Move a process and keep the queue in step."""
        reason = block_reason(process) if state is ProcState.BLOCKED else None
        self.queue.change(process, lambda: move(process, state, reason))
        self.recorder.note_state(process, len(self.queue.waiting))
        if state is ProcState.STOPPED or process.turn_is_over:
            self.on_pause(process)

    # --- in and out of memory -----------------------------------------------------------------------------

    def set_aside(self, process: Process, by: Process) -> None:
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
        out = self.switch.switch_out(process, keep=True, num_running=self.queue.num_places_taken)
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

    def arrive(self, process: Process, transfer: Transfer) -> None:
        """A copy of a process's memory back to the device has ended; without others it can run."""
        process.timeline.swapped_in(trio.current_time(), transfer.num_bytes, transfer.seconds, transfer.tier)
        if process.num_arriving:
            return
        if process.state is ProcState.BLOCKED and process.pid in self.queue.arriving:
            self.set_state(process, ProcState.RUNNING)
        self.admission_is_due = True

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
        """End a turn: an interactive process waits for input from here on, any other one has ended."""
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

    # --- what they are charged ----------------------------------------------------------------------------

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

    # --- looking ------------------------------------------------------------------------------------------

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
