"""The Core: one actor per device, and the loop that keeps the device busy.

The loop takes what came, has the next step planned, and sends it. Two steps are in flight: while the device
computes N, step N+1 is planned with rows that refer to "the token that step N samples for you".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import structlog
import trio

from llmos.device import CopyDone, DriverLink, DriverLost, KVFormat, Loaded, StepDone, ToDriver
from llmos.ipc.actor import Actor, ActorStatistics
from llmos.ipc.mailbox import Mailbox
from llmos.mm.swap import SwapStatistics
from llmos.mm.vmm import VmmStatistics
from llmos.proc.pcb import Process
from llmos.sched import commands
from llmos.sched.accounts import Accounts
from llmos.sched.admission import Admission
from llmos.sched.batch import BatchLimits
from llmos.sched.cache_drops import CacheDrops
from llmos.sched.completion import Completion
from llmos.sched.forecast import Forecast
from llmos.sched.grammars import GrammarStatistics
from llmos.sched.in_flight import StepsInFlight
from llmos.sched.memory_options import MemoryOptions
from llmos.sched.messages import (
    CopyFinished,
    DriverDown,
    DriverUp,
    DropCache,
    Enqueue,
    GrammarFinished,
    Message,
    Reconsider,
    Restore,
    Save,
    Sleep,
    StepFinished,
    Sweep,
    Vacate,
    Wake,
)  # fmt: skip
from llmos.sched.pageout import Pageout
from llmos.sched.planner import Planner
from llmos.sched.policy import ResidencyPolicy
from llmos.sched.preemption import PreemptionCosts
from llmos.sched.residents import Residents
from llmos.sched.rest import Rest
from llmos.sched.saving import start_saving
from llmos.sched.switch import ContextSwitch
from syscalls.process import ExitStatus

log = structlog.get_logger("core")


@attrs.frozen
class CoreStatistics(ActorStatistics):
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
    swap: SwapStatistics | None
    grammars: GrammarStatistics


class Core(Actor[Message]):
    """Owns the run queue and the memory of one device.

    Args:
        name: of the device.
        policy: who is resident.
        accounts: of the tenants of all devices.
        limits: what one step may hold.
        max_running: most processes that run at once.
        memory: how its memory is used.
        on_exit: called with each process as it becomes a zombie.
        on_pause: called with each process that waits for input, or was stopped.
        on_event: told, with a subsystem, of what an operator should know.
        preemption: how processes lose their memory.
    """

    def __init__(
        self,
        name: str,
        policy: ResidencyPolicy,
        accounts: Accounts,
        limits: BatchLimits,
        max_running: int,
        memory: MemoryOptions,
        on_exit: Callable[[Process], None],
        on_pause: Callable[[Process], None] = lambda process: None,
        on_event: Callable[[str, str], None] = lambda subsystem, text: None,
        preemption: PreemptionCosts | None = None,
    ) -> None:
        # Unbounded: senders are syscalls and one driver, bounded by the process table and steps in flight.
        super().__init__(name, Mailbox(math.inf))
        self.limits = limits
        self.memory = memory
        self.on_event = on_event
        self.preemption = preemption or PreemptionCosts(max_step_tokens=limits.max_step_tokens)
        self.loaded: Loaded | None = None
        self.has_loaded = trio.Event()  # replaced when the model is gone
        self.rest = Rest()
        # Called when the readers of a step have their answers: those need not wait for the next step.
        self.after_results: Callable[[], None] = lambda: None
        self.in_flight = StepsInFlight()
        self.residents = Residents(
            device=name,
            policy=policy,
            accounts=accounts,
            max_running=max_running,
            on_exit=on_exit,
            on_pause=on_pause,
            on_event=on_event,
        )
        self.completion = Completion(self.residents)
        self._pageout = Pageout(self.residents)
        self._planner = Planner(
            Admission(self.residents), self._pageout, limits, self.in_flight, self.rest, self._drop_cache
        )
        self._cache_drops = CacheDrops()
        self._link: DriverLink | None = None

    # --- the loop ----------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[Mailbox[Message]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the mailbox is closed. A checkpoint on every turn."""
        task_status.started(self.mailbox)
        while True:
            for message in self.mailbox.drain_nowait():
                self._handle(message)
            orders = self._plan()
            if not orders and not self._cache_drops:
                try:
                    self._handle(await self.mailbox.receive())
                except trio.EndOfChannel:
                    return
            for order in orders:
                try:
                    if self._link is not None:
                        await self._link.send(order)
                except DriverLost:
                    self._link = None  # DriverDown is on its way, from the task that reads the link
            if self._cache_drops:  # beside the step that the driver has now
                await self._cache_drops.go_on()

    def _plan(self) -> list[ToDriver]:
        """What the driver is to be told now, in order; empty when there is nothing, or nobody to tell."""
        if self._link is None:
            return []
        assert self.residents.switch is not None
        return [*self.residents.grammars.take_orders(), *self._planner.plan(self.residents.switch)]

    def _handle(self, message: Message) -> None:
        match message:
            case StepFinished(result):
                self._finish_step(result)
            case CopyFinished(result):
                self._finish_copy(result)
            case GrammarFinished(result):
                if not self.residents.finish_grammar(result):
                    self._distrust(grammar=result.id)
            case Sweep(idle_seconds):
                if self._link is not None and self.residents.switch is not None:
                    self._pageout.sweep(self.residents.switch, idle_seconds)
            case Reconsider():
                self.residents.admission_is_due = True
            case Enqueue(processes):
                commands.enqueue(self.residents, processes)
            case Save():
                start_saving(self.residents, message, self.loaded, is_up=self._link is not None)
            case Restore(process, pages):
                commands.restore(self.residents, process, pages)
            case DropCache():
                self._drop_cache(message)
            case Sleep(done):
                self.rest.begin(done)
            case Wake():
                self.rest.end()
                self.residents.admission_is_due = True
            case DriverUp(link, loaded):
                self._attach(link, loaded)
            case Vacate():
                self._vacate()
            case DriverDown(reason, is_final):
                self._detach(reason, is_final)
            case _:
                commands.carry_out(self.residents, message, self._context_limit())

    def _drop_cache(self, message: DropCache) -> None:
        switch = self.residents.switch
        self._cache_drops.start(message, switch.vmm if switch is not None else None)

    def _context_limit(self) -> int:
        return self.loaded.model.max_model_len if self.loaded else 0

    # --- results -----------------------------------------------------------------------------------------

    def _finish_step(self, result: StepDone) -> None:
        """Take the end of a step in."""
        step = self.in_flight.take_answered(result)
        if step is None:
            self._distrust(step=result.id)
            return
        self.completion.take(step, result, self.preemption.forecast)
        self.after_results()

    def _finish_copy(self, result: CopyDone) -> None:
        """Take the end of a copy between tiers in."""
        assert self.residents.switch is not None
        oldest = self.in_flight.oldest
        transfers = self.residents.switch.swap.transfers
        if transfers.finish(result, oldest.step.id if oldest is not None else None) is None:
            self._distrust(copy=result.id)

    def _distrust(self, **what: int) -> None:
        """The driver answered what it was not asked: end it. DriverDown follows."""
        log.error("driver_out_of_step", device=self.name, **what)
        if self._link is not None:
            self._link.kill()

    # --- the device comes and goes -----------------------------------------------------------------------

    def _attach(self, link: DriverLink, loaded: Loaded) -> None:
        """A driver has the model in memory: steps may be planned."""
        if self.loaded is None or _memory_of(self.loaded) != _memory_of(loaded):
            vmm = self.memory.make_vmm(loaded, self.limits.max_step_tokens)
            swap = self.memory.make_swap(vmm, loaded, self._report_fault)
            self.residents.switch = ContextSwitch(
                vmm, swap, self.preemption, self.residents.arrive, self._pageout.depart
            )
        self.loaded = loaded
        self.has_loaded.set()
        self.preemption.profile = loaded.profile
        self.preemption.forecast = (
            Forecast(loaded.profile.cost, self.limits.target_seconds) if loaded.profile is not None else None
        )
        self._link = link
        self.residents.admission_is_due = True

    def _report_fault(self, message: str) -> None:
        self.on_event("swap", f"{self.name}: {message}")

    def _detach(self, reason: str, is_final: bool) -> None:
        """The device's memory is lost, no process is: they recompute when a driver is back."""
        self._link = None
        self.in_flight.clear()
        self.residents.lose_memory()
        self.rest.settle()
        if is_final:
            for process in list(self.residents.queue.members.values()):
                self.residents.terminate(
                    process, ExitStatus("error", message=f"device {self.name} is lost: {reason}")
                )

    def _vacate(self) -> None:
        """The device's model is gone for good; another one may come."""
        self._detach("its model was unloaded", is_final=True)
        self.loaded = self.residents.switch = None
        self.preemption.profile = self.preemption.forecast = None
        self.has_loaded = trio.Event()

    # --- looking -----------------------------------------------------------------------------------------

    def statistics(self) -> CoreStatistics:
        """Count what is there. Cheap: nothing is walked."""
        residents, completion = self.residents, self.completion
        return CoreStatistics(
            name=self.name,
            mailbox=self.mailbox.statistics(),
            num_processes=len(residents.queue.members),
            num_running=len(residents.queue.running),
            num_waiting=len(residents.queue.waiting),
            num_steps=completion.num_steps,
            num_prompt_tokens=completion.num_prompt_tokens,
            num_cached_tokens=residents.num_cached_tokens,
            num_output_tokens=completion.num_output_tokens,
            num_preemptions=residents.num_preemptions,
            device_seconds=completion.device_seconds,
            memory=residents.switch.vmm.statistics() if residents.switch else None,
            swap=residents.switch.swap.statistics() if residents.switch else None,
            grammars=residents.grammars.statistics(),
        )


def _memory_of(loaded: Loaded) -> tuple[KVFormat, int, int, int]:
    """What the kernel's picture of a device's memory depends on."""
    return loaded.kv, loaded.num_frames, loaded.num_host_slots, loaded.num_disk_slots
