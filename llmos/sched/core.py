"""The Core: one actor per device, and the step loop.

The loop takes what came, composes a step, issues it, and applies results as they arrive. Two steps are in
flight: while the device computes N, step N+1 is planned with rows that refer to "the token that step N
samples for you".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import attrs
import structlog
import trio

from llmos.device import DriverLink, DriverLost, KVFormat, Loaded, Row, Step, StepDone
from llmos.errors import OutOfFrames, OutOfSpaces
from llmos.ipc.mailbox import Mailbox
from llmos.mm.vmm import VMM, VmmStatistics
from llmos.params import STEPS_IN_FLIGHT
from llmos.proc.lifecycle import ProcState, move
from llmos.proc.pcb import Pid, Process
from llmos.sched import commands
from llmos.sched.batch import BatchLimits, compose
from llmos.sched.messages import DriverDown, DriverUp, Enqueue, Message, StepFinished
from llmos.sched.policy import ResidencyPolicy
from llmos.sched.runqueue import RunQueue
from llmos.sched.switch import ContextSwitch
from syscalls.process import ExitStatus

log = structlog.get_logger("core")


@attrs.frozen
class CoreStatistics:
    """A device's kernel half at one moment; the counters count from boot."""

    num_processes: int
    num_running: int
    num_waiting: int
    num_steps: int
    num_prompt_tokens: int  # computed, not found in memory
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    device_seconds: float
    memory: VmmStatistics | None


@attrs.frozen
class InFlight:
    """A step that the device has not answered yet."""

    id: int
    issued_at: float
    entries: list[tuple[Process, int, int, bool]]  # process, its epoch, end position, whether it samples


class Core:
    """Owns the run queue and the memory of one device.

    Args:
        name: of the device.
        policy: who is resident.
        limits: what one step may hold.
        max_running: most processes that run at once.
        max_spaces: address spaces of the device, for those who run and those who only hold memory.
        on_exit: called with each process as it becomes a zombie.
        prefix_cache: keep the pages of ended processes for others to share.
    """

    def __init__(
        self,
        name: str,
        policy: ResidencyPolicy,
        limits: BatchLimits,
        max_running: int,
        max_spaces: int,
        on_exit: Callable[[Process], None],
        prefix_cache: bool = True,
    ) -> None:
        self.name = name
        # Unbounded: senders are syscalls and one driver, bounded by the process table and steps in flight.
        self.mailbox: Mailbox[Message] = Mailbox(math.inf)
        self.loaded: Loaded | None = None
        self.policy = policy
        self.limits = limits
        self.max_running = max_running
        self.max_spaces = max_spaces
        self.prefix_cache = prefix_cache
        self.switch: ContextSwitch | None = None
        self.queue = RunQueue(self._frames_needed)
        self.on_exit = on_exit
        self.admission_is_due = False
        self._link: DriverLink | None = None
        self._in_flight: deque[InFlight] = deque()
        self._step_id = 0
        self.num_steps = self.num_prompt_tokens = self.num_cached_tokens = 0
        self.num_output_tokens = self.num_preemptions = 0
        self.device_seconds = 0.0

    # --- the loop ----------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the mailbox is closed. A checkpoint on every turn."""
        task_status.started()
        while True:
            for message in self.mailbox.drain_nowait():
                self._handle(message)
            step = self._plan() if self._link and len(self._in_flight) < STEPS_IN_FLIGHT else None
            if step is None:
                try:
                    self._handle(await self.mailbox.receive())
                except trio.EndOfChannel:
                    return
            else:
                try:
                    assert self._link is not None
                    await self._link.send(step)
                except DriverLost:
                    self._link = None  # DriverDown is on its way, from the task that reads the link

    def _handle(self, message: Message) -> None:
        match message:
            case StepFinished(result):
                self._apply(result)
            case Enqueue(processes):
                commands.enqueue(self, processes)
            case DriverUp(link, loaded):
                self._attach(link, loaded)
            case DriverDown(reason, is_final):
                self._detach(reason, is_final)
            case _:
                commands.carry_out(self, message)

    # --- planning ----------------------------------------------------------------------------------------

    def _plan(self) -> Step | None:
        """Compose the next step, map its memory, and account for it; None when nobody can run."""
        assert self.switch is not None
        switch, vmm = self.switch, self.switch.vmm
        if self.admission_is_due:
            self._admit()
        rows: list[Row] = []
        entries: list[tuple[Process, int, int, bool]] = []
        placed: set[Pid] = set()
        elders: list[Process] = []
        for share in compose(self.queue.running, self.limits):
            process = share.process
            if process.state is not ProcState.RUNNING:
                continue  # gave its memory up for one before it in this very step
            start = process.num_scheduled
            end = start + share.num_tokens
            space = process.space
            assert space is not None
            try:
                vmm.grow(space, start, end)
            except OutOfFrames:
                if not self._make_room(process, start, end, placed):
                    continue
            if not process.bound:
                switch.bind(process)
            known = len(process.tokens)
            tokens = tuple(process.tokens[start:end]) if start < known else ()
            sample = end >= known and process.wants_sample
            rows.append(Row(space.asid, start, tokens, sample))
            entries.append((process, process.epoch, end, sample))
            placed.add(process.pid)
            process.num_scheduled = end
            if sample:
                process.num_pending += 1
            if process.first_step_at is None:
                process.first_step_at = trio.current_time()
            if process.heirs and end >= process.turn_start - 1:
                elders.append(process)
        if not rows:
            return None
        self._step_id += 1
        self._in_flight.append(InFlight(self._step_id, trio.current_time(), entries))
        step = Step(self._step_id, switch.take_edits(), tuple(rows))
        # Only now: the heirs' mappings must ride on the next step, since this one still writes those pages.
        for elder in elders:
            self.release_heirs(elder)
        return step

    def _admit(self) -> None:
        """Let waiting processes run as the policy says."""
        assert self.switch is not None
        self.admission_is_due = False
        while self.queue.waiting:
            statistics = self.switch.vmm.statistics()
            view = self.queue.view(statistics.num_free + statistics.num_cached, self.max_running)
            pids = self.policy.admit(view)
            for pid in pids:
                process = self.queue.members[Pid(pid)]
                first_time = process.first_step_at is None and process.space is None
                try:
                    self.switch.switch_in(process)
                except OutOfSpaces:
                    pids = []
                    break
                if first_time:
                    self.num_cached_tokens += process.num_cached_tokens
                self.set_state(process, ProcState.RUNNING)
            if pids or len(self.queue.running) >= self.max_running:
                return
            # Nobody fits. Memory of those that do not run (stopped, waiting for input) is given up first.
            head = self.queue.waiting[0]
            idle = [p for p in self.queue.members.values() if p.space and p.state is not ProcState.RUNNING]
            if not any(p is not head for p in idle):
                return
            victim = self.policy.victim(self.queue.view(0, self.max_running), head.pid)
            if victim is None or self.queue.members[Pid(victim)].state is ProcState.RUNNING:
                return
            self._preempt(self.queue.members[Pid(victim)])

    def _make_room(self, process: Process, start: int, end: int, placed: set[Pid]) -> bool:
        """Preempt by policy until the process can grow; False when it gave its own memory up."""
        assert self.switch is not None
        assert process.space is not None
        while True:
            view = self.queue.view(0, self.max_running, excluding=placed)
            victim = self.policy.victim(view, process.pid)
            if victim is None:
                self._preempt(process)
                return False
            self._preempt(self.queue.members[Pid(victim)])
            try:
                self.switch.vmm.grow(process.space, start, end)
            except OutOfFrames:
                continue
            return True

    def _preempt(self, process: Process) -> None:
        """Take a process's memory; if it ran, it waits to run again."""
        assert self.switch is not None
        self.switch.switch_out(process)
        process.num_preemptions += 1
        self.num_preemptions += 1
        if process.state is ProcState.RUNNING:
            self.set_state(process, ProcState.READY)
        self.admission_is_due = True
        log.info("preempt", device=self.name, pid=process.pid, num_tokens=len(process.tokens))

    def release_heirs(self, elder: Process) -> None:
        """Let the siblings that wait for this prefill go on, over its pages where they are there."""
        assert self.switch is not None
        for heir in elder.heirs:
            if heir.state is ProcState.ZOMBIE:
                continue
            if heir.space is None and elder.space is not None:
                self.share_if_room(elder, heir, min(elder.num_scheduled, len(heir.tokens) - 1))
            if heir.state is ProcState.BLOCKED:
                self.set_state(heir, ProcState.READY)
        elder.heirs = []
        self.admission_is_due = True

    def share_if_room(self, elder: Process, heir: Process, num_tokens: int) -> None:
        """Let `heir` start from the elder's pages; without a free space, from the prefix index later."""
        assert self.switch is not None
        if num_tokens > 0:
            try:
                self.switch.share(elder, heir, num_tokens)
            except OutOfSpaces:
                log.info("fork_without_space", device=self.name, pid=heir.pid)

    # --- results -----------------------------------------------------------------------------------------

    def _apply(self, result: StepDone) -> None:
        """Account for a finished step and hand its tokens out."""
        step = self._in_flight.popleft()
        assert step.id == result.id, (step.id, result.id)
        self.num_steps += 1
        self.device_seconds += result.seconds
        now = trio.current_time()
        faults = {fault.row: fault.message for fault in result.faults}
        woken: list[Process] = []
        for i, (process, epoch, end, sample) in enumerate(step.entries):
            if process.epoch != epoch:
                continue
            if faults and i in faults:
                self.terminate(process, ExitStatus("error", message=faults[i]), is_clean=False)
                continue
            self.num_prompt_tokens += max(0, min(end, process.turn_start) - process.num_computed)
            process.num_computed = end
            if not sample:
                continue
            token = result.tokens[i]
            assert token is not None
            process.num_pending -= 1
            process.tokens.append(token)
            process.output.append(token)
            if result.logprobs:
                logprobs = result.logprobs[i]
                if logprobs is not None:
                    process.logprobs.append(logprobs)
            if process.first_token_at is None:
                process.first_token_at = now
            self.num_output_tokens += 1
            if token in process.stop_tokens:
                self._end_turn(process, ExitStatus("stop", stop_token=token))
            elif process.num_turn_output >= process.max_tokens:
                self._end_turn(process, ExitStatus("length"))
            elif process.readers:
                woken.append(process)
        for process in woken:
            process.wake_readers()

    def _end_turn(self, process: Process, status: ExitStatus) -> None:
        if not process.interactive:
            self.terminate(process, status)
            return
        # A step in flight may compute the end token's position: valid memory, but its sample is not wanted.
        process.epoch += 1
        process.num_pending = 0
        process.num_scheduled = process.num_computed = min(process.num_scheduled, len(process.tokens))
        process.bound = False
        process.status = status
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
        self.queue.forget(process)
        move(process, ProcState.ZOMBIE)
        process.status = status
        process.ended_at = trio.current_time()
        self.admission_is_due = True
        self.on_exit(process)
        process.wake_readers()
        callbacks, process.exit_callbacks = process.exit_callbacks, []
        for callback in callbacks:
            callback(process)

    # --- the device comes and goes -----------------------------------------------------------------------

    def _attach(self, link: DriverLink, loaded: Loaded) -> None:
        if self.switch is None or self.loaded is None or self.loaded.kv != loaded.kv:
            self.switch = ContextSwitch(self._new_vmm(loaded.kv, loaded))
        self.loaded = loaded
        self._link = link
        self.admission_is_due = True

    def _new_vmm(self, kv: KVFormat, loaded: Loaded) -> VMM:
        return VMM(
            kv,
            num_frames=loaded.num_frames,
            max_spaces=self.max_spaces,
            max_model_len=loaded.model.max_model_len,
            prefix_cache=self.prefix_cache,
        )

    def _detach(self, reason: str, is_final: bool) -> None:
        """The device's memory is lost, no process is: they recompute when a driver is back."""
        self._link = None
        self._in_flight.clear()
        for process in list(self.queue.members.values()):
            process.space = None
            process.epoch += 1
            process.num_pending = process.num_scheduled = process.num_computed = 0
            process.bound = False
            if process.state is ProcState.RUNNING:
                self.set_state(process, ProcState.READY)
        if self.switch is not None:
            self.switch.reset()
        if is_final:
            for process in list(self.queue.members.values()):
                self.terminate(process, ExitStatus("error", message=f"device {self.name} is lost: {reason}"))

    # --- small things ------------------------------------------------------------------------------------

    def set_state(self, process: Process, state: ProcState) -> None:
        """Move a process and keep the queue in step."""
        self.queue.take(process)
        move(process, state, commands.block_reason(process) if state is ProcState.BLOCKED else None)
        self.queue.add(process)

    def _frames_needed(self, process: Process) -> int:
        assert self.switch is not None
        return self.switch.frames_needed(process)

    def oldest_issue_time(self) -> float | None:
        """When the oldest unanswered step was issued, on the kernel's clock; None: nothing is in flight."""
        return self._in_flight[0].issued_at if self._in_flight else None

    def statistics(self) -> CoreStatistics:
        """Count what is there. Cheap: nothing is walked."""
        return CoreStatistics(
            num_processes=len(self.queue.members),
            num_running=len(self.queue.running),
            num_waiting=len(self.queue.waiting),
            num_steps=self.num_steps,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=self.num_preemptions,
            device_seconds=self.device_seconds,
            memory=self.switch.vmm.statistics() if self.switch else None,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError where queue, processes and memory contradict each other."""
        for process in self.queue.members.values():
            process.check_integrity()
        assert all(p.state is ProcState.READY for p in self.queue.waiting)
        assert all(p.state is ProcState.RUNNING and p.space for p in self.queue.running)
        if self.switch is not None:
            self.switch.vmm.check_integrity()
