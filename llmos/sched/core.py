"""The Core: one actor per device, and the step loop.

The loop takes what came, composes a step, issues it, and applies results as they arrive. Two steps are in
flight: while the device computes N, step N+1 is planned with rows that refer to "the token that step N
samples for you".
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable

import attrs
import msgspec
import structlog
import trio

from llmos.cost import StepWork, count_pairs
from llmos.device import (
    Copy,
    CopyDone,
    DriverLink,
    DriverLost,
    KVFormat,
    Loaded,
    Row,
    Step,
    StepDone,
    Tier,
    ToDriver,
)  # fmt: skip
from llmos.errors import OutOfFrames
from llmos.ipc.actor import Actor, ActorStatistics
from llmos.ipc.mailbox import Mailbox
from llmos.mm.eviction import CostAware, make_eviction
from llmos.mm.mapper import MappingMode
from llmos.mm.swap import Swap, SwapStatistics
from llmos.mm.vmm import VMM, VmmStatistics
from llmos.proc.image import platform_of
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Process
from llmos.sched import commands
from llmos.sched.accounts import Accounts
from llmos.sched.batch import BatchLimits, compose
from llmos.sched.cache_drops import CacheDrops
from llmos.sched.courtesy import Courtesy
from llmos.sched.forecast import Forecast
from llmos.sched.grammars import GrammarStatistics
from llmos.sched.in_flight import InFlight, last_use
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
from llmos.sched.policy import ResidencyPolicy
from llmos.sched.preemption import PreemptionCosts
from llmos.sched.residents import Residents
from llmos.sched.rest import Rest
from llmos.sched.saving import start_saving
from llmos.sched.switch import ContextSwitch
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus

log = structlog.get_logger("core")

STEPS_PER_RESIDENCY_CHARGE = 64  # between charges for holding memory


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
        max_spaces: address spaces of the device, for those who run and those who only hold memory.
        on_exit: called with each process as it becomes a zombie.
        prefix_cache: keep the pages of ended processes for others to share.
        cache_policy: which of them go first, one of EVICTION_POLICIES.
        preemption: how processes lose their memory.
        swap_reuse: keep copies on lower tiers when their pages are back.
        on_event: told, with a subsystem, of what an operator should know.
        mapping: when pages are mapped, see Mapper.
        max_pin_seconds: longest that pages may be pinned in the prefix cache; 0: not at all.
        max_pinned_bytes: of the prefix cache, for each tenant; None: as the VMM says.
    """

    def __init__(
        self,
        name: str,
        policy: ResidencyPolicy,
        accounts: Accounts,
        limits: BatchLimits,
        max_running: int,
        max_spaces: int,
        on_exit: Callable[[Process], None],
        prefix_cache: bool = True,
        cache_policy: str = CostAware.name,
        preemption: PreemptionCosts | None = None,
        swap_reuse: bool = True,
        on_event: Callable[[str, str], None] = lambda subsystem, text: None,
        mapping: MappingMode = "ahead",
        max_pin_seconds: float = 0.0,
        max_pinned_bytes: int | None = None,
    ) -> None:
        # Unbounded: senders are syscalls and one driver, bounded by the process table and steps in flight.
        super().__init__(name, Mailbox(math.inf))
        self.loaded: Loaded | None = None
        self.has_loaded = trio.Event()  # replaced when the model is gone
        self.forecast: Forecast | None = None  # None: how long steps take is not known
        self.residents = Residents(
            device=name,
            policy=policy,
            accounts=accounts,
            max_running=max_running,
            on_exit=on_exit,
            on_event=on_event,
        )
        self.limits = limits
        self._courtesy = Courtesy(policy.is_over_share)
        self.max_spaces = max_spaces
        self.prefix_cache = prefix_cache
        self.cache_policy = cache_policy
        self.preemption = preemption or PreemptionCosts(max_step_tokens=limits.max_step_tokens)
        self.swap_reuse = swap_reuse
        self.on_event = on_event
        self.mapping = mapping
        self.max_pin_seconds = max_pin_seconds
        self.max_pinned_bytes = max_pinned_bytes
        self._link: DriverLink | None = None
        self._cache_drops = CacheDrops()
        self.rest = Rest()
        self._in_flight: deque[InFlight] = deque()
        self._step_id = self._next_review = 0
        self.num_steps = self.num_prompt_tokens = self.num_output_tokens = 0
        self.device_seconds = 0.0
        # Called when the readers of a step have their answers: those need not wait for the next step.
        self.after_results: Callable[[], None] = lambda: None

    # --- the loop ----------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[Mailbox[Message]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the mailbox is closed. A checkpoint on every turn."""
        task_status.started(self.mailbox)
        while True:
            for message in self.mailbox.drain_nowait():
                self._handle(message)
            orders: list[ToDriver] = []
            if self._link is not None:
                orders += self.residents.grammars.take_orders()
                orders += self._plan()
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

    def _handle(self, message: Message) -> None:
        match message:
            case StepFinished(result):
                self._apply(result)
            case CopyFinished(result):
                self._finish_copy(result)
            case GrammarFinished(result):
                if not self.residents.finish_grammar(result):
                    self._distrust(grammar=result.id)
            case Sweep(idle_seconds):
                if self._link is not None:
                    self.residents.sweep(idle_seconds)
            case Reconsider():
                self.residents.admission_is_due = True
            case Enqueue(processes):
                commands.enqueue(self.residents, processes)
            case Save() if self.loaded is None:
                message.done(SyscallError(Errno.EBUSY, f"process {message.process.pid} has exited"))
            case Save():
                assert self.loaded is not None
                start_saving(self.residents, message, platform_of(self.loaded), is_up=self._link is not None)
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
                self._detach("its model was unloaded", is_final=True)
                self.loaded = self.forecast = self.residents.switch = None
                self.has_loaded = trio.Event()
            case DriverDown(reason, is_final):
                self._detach(reason, is_final)
            case _:
                commands.carry_out(self.residents, message, self._context_limit())

    # --- planning ----------------------------------------------------------------------------------------

    def _plan(self) -> list[Step | Copy]:
        """Decide what the device is to do next; empty when there is nothing.

        With enough steps in flight that is to begin copies for those who come: they need not wait for a step,
        unless switching is synchronous, as it was before FastSwitch: then all of it is done between steps.
        Copies come after the step, whose edits may make what they copy.
        """
        residents, switch = self.residents, self.residents.switch
        assert switch is not None
        if self.rest.is_asked_for:
            return self._plan_rest(switch)
        if len(self._in_flight) >= self.limits.steps_in_flight:
            if switch.costs.is_sync:
                return []
            if residents.admission_is_due:
                residents.admit()
            return [] if switch.vmm.has_page_copies else self._take_copies(switch)
        if residents.accounts.has_memory_caps:
            residents.keep_within_caps()
        if residents.policy.review_steps and self._step_id >= self._next_review:
            self._next_review = self._step_id + residents.policy.review_steps
            residents.review()
        if residents.admission_is_due:
            residents.admit()
        orders: list[Step | Copy] = []
        if not switch.must_wait(residents.queue.running) and (step := self._plan_step(switch)) is not None:
            orders.append(step)
        residents.clean()
        if switch.swap.has_messages and switch.vmm.has_page_copies:
            orders.append(self._issue(Step(self._step_id + 1, switch.take_edits(), ()), [], StepWork()))
        return orders + self._take_copies(switch)

    def _plan_rest(self, switch: ContextSwitch) -> list[Step | Copy]:
        """Take what memory there is from everybody: only edits and copies are left to do."""
        is_empty = self.rest.empty(self.residents, self._drop_cache)
        orders: list[Step | Copy] = []
        if len(self._in_flight) < self.limits.steps_in_flight and (edits := switch.take_edits()):
            orders.append(self._issue(Step(self._step_id + 1, edits, ()), [], StepWork()))
        if not switch.vmm.has_page_copies:
            orders += self._take_copies(switch)
        if is_empty and not orders and not self._in_flight:
            self.rest.settle()
        return orders

    def _drop_cache(self, message: DropCache) -> None:
        switch = self.residents.switch
        self._cache_drops.start(message, switch.vmm if switch is not None else None)

    def _take_copies(self, switch: ContextSwitch) -> list[Step | Copy]:
        """Copies to begin, each with the step that it must wait for."""
        size, in_turn = switch.vmm.kv.tokens_per_page, switch.costs.is_sync
        return [
            copy
            if in_turn or not pages
            else msgspec.structs.replace(copy, after=last_use(self._in_flight, pages, size))
            for copy, pages in switch.take_copies(self._step_id)
        ]

    def _plan_step(self, switch: ContextSwitch) -> Step | None:
        """Compose the next step, map its memory, and account for it; None when nobody can run."""
        residents, vmm = self.residents, switch.vmm
        rows: list[Row] = []
        entries: list[tuple[Process, int, int, bool]] = []
        elders: list[Process] = []
        num_tokens = num_context_tokens = num_pairs = 0
        predict = self.forecast.step_seconds if self.forecast else None
        for process, num_new in compose(
            residents.queue.running, self.limits, predict, residents.policy.standing, self._courtesy
        ):
            if process.state is not ProcState.RUNNING:
                continue  # gave its memory up for one before it in this very step
            start = process.num_scheduled
            end = start + num_new
            space = process.space
            assert space is not None
            try:
                vmm.grow(space, start, end)
            except OutOfFrames:
                placed = {entry[0].pid for entry in entries}
                if not residents.make_room(process, start, end, placed):
                    continue
            if not process.bound:
                switch.bind(process)
            known, num_pending = len(process.tokens), process.num_pending
            tokens = tuple(process.tokens[start:end]) if start < known else ()
            sample = end >= known and known - process.turn_start + num_pending < process.max_tokens
            targets = process.targets(start, end) if start < process.num_to_score else ()
            pool = process.pooling is not None and end >= known
            rows.append(Row(space.asid, start, tokens, sample, targets, pool))
            entries.append((process, process.epoch, end, sample))
            num_tokens += num_new
            num_context_tokens += end
            num_pairs += end if num_new == 1 else count_pairs(start, num_new)
            process.num_scheduled = end
            if process.num_uncharged:
                residents.charge_prompt(process, start, end)
            if end < known:
                vmm.map_ahead(space, min(known, end + num_new))
            if sample:
                process.num_pending = num_pending + 1
            if tokens and not process.timeline.is_decoding:
                now = trio.current_time()
                if process.first_step_at is None:
                    process.first_step_at = now
                if start < process.turn_start or num_new > 1:
                    process.timeline.computes(now, num_new)
            if process.heirs and end >= process.turn_start - 1:
                elders.append(process)
        if not rows:
            return None
        work = StepWork(num_tokens, len(rows), num_context_tokens, num_pairs)
        step = self._issue(Step(self._step_id + 1, switch.take_edits(), tuple(rows)), entries, work)
        # Only now: the heirs' mappings must ride on the next step, since this one still writes those pages.
        for elder in elders:
            residents.release_heirs(elder)
        return step

    def _issue(self, step: Step, entries: list[tuple[Process, int, int, bool]], work: StepWork) -> Step:
        self._step_id = step.id
        self._in_flight.append(InFlight(step, trio.current_time(), entries, work))
        return step

    # --- results -----------------------------------------------------------------------------------------

    def _apply(self, result: StepDone) -> None:
        """Account for a finished step and hand its tokens out."""
        if not self._is_answer(result):
            self._distrust(step=result.id)
            return
        step = self._in_flight.popleft()
        self.num_steps += 1
        self.device_seconds += result.seconds
        if self.forecast is not None and step.entries:
            self.forecast.learn(step.work, result.seconds)
        if result.maps is not None and self.residents.switch is not None:
            self.residents.switch.vmm.note_map_work(result.maps)
        now = trio.current_time()
        ended_at = now if result.ended_at is None else result.ended_at
        faults = {fault.row: fault.message for fault in result.faults}
        tenants: list[str] = []  # of each token
        for i, (process, epoch, end, sample) in enumerate(step.entries):
            if process.epoch != epoch:
                continue
            if faults and i in faults:
                self.residents.terminate(process, ExitStatus("error", message=faults[i]), is_clean=False)
                continue
            turn_start = process.turn_start
            if process.num_computed < turn_start:
                self.num_prompt_tokens += max(0, min(end, turn_start) - process.num_computed)
            process.num_computed = end
            if result.scores:
                process.take_scores(result.scores[i], end)
            if process.pooling is not None:
                self._take_vector(process, end, result.vectors[i] if result.vectors else None)
                continue
            if not sample:
                if process.max_tokens == 0 and end >= process.num_to_score:
                    self.residents.end_turn(process, ExitStatus("length"))  # only the prompt was to be scored
                continue
            token = result.tokens[i]
            if token is None:
                self.residents.terminate(process, ExitStatus("error", message="the driver sampled no token"))
                continue
            process.num_pending -= 1
            tokens = process.tokens
            tokens.append(token)
            process.output.append(token)
            if process.token_times is not None:
                process.token_times.append(ended_at)
            if result.logprobs:
                logprobs = result.logprobs[i]
                if logprobs is not None:
                    process.logprobs.append(logprobs)
            if result.mus:
                process.mu = result.mus[i]
            if not process.timeline.is_decoding:
                is_first = process.num_turn_output == 1 or process.first_token_at is None  # that of a child
                process.timeline.decodes(now, len(process.output), is_first)
                if process.first_token_at is None:
                    process.first_token_at = now
            tenants.append(process.tenant)
            if token in process.stop_tokens:
                self.residents.end_turn(process, ExitStatus("stop", stop_token=token))
            elif len(tokens) - turn_start >= process.max_tokens:
                self.residents.end_turn(process, ExitStatus("length"))
            elif process.readers or process.followers:
                process.wake_readers()  # now: the first ones' tokens are on their way beside the others
        self.num_output_tokens += len(tenants)
        for tenant, num_tokens in Counter(tenants).items():
            self.residents.accounts.of(tenant).charge_output(num_tokens)
        if self.num_steps % STEPS_PER_RESIDENCY_CHARGE == 0:
            self.residents.charge_all_residency()
        self.after_results()

    def _take_vector(self, process: Process, end: int, vector: bytes | None) -> None:
        """Take what a process with `pooling` has come to at `end`: its vector ends it."""
        if end < process.turn_start:
            if vector is not None and end > process.num_summed:
                process.num_summed, process.total = end, vector
        elif vector is None:
            self.residents.terminate(process, ExitStatus("error", message="the driver made no vector"))
        else:
            process.vector = vector
            self.residents.terminate(process, ExitStatus("stop"))

    def _finish_copy(self, result: CopyDone) -> None:
        """Take the end of a copy between tiers in."""
        assert self.residents.switch is not None
        oldest_step = self._in_flight[0].step.id if self._in_flight else None
        if self.residents.switch.swap.finish(result, oldest_step) is None:
            self._distrust(copy=result.id)

    def _distrust(self, **what: int) -> None:
        """The driver answered what it was not asked: end it. DriverDown follows."""
        log.error("driver_out_of_step", device=self.name, **what)
        if self._link is not None:
            self._link.kill()

    def _is_answer(self, result: StepDone) -> bool:
        """Does a result answer the oldest step in flight, row by row?"""
        if not self._in_flight:
            return False
        step = self._in_flight[0]
        return result.id == step.step.id and len(result.tokens) == len(step.entries)

    # --- the device comes and goes -----------------------------------------------------------------------

    def _attach(self, link: DriverLink, loaded: Loaded) -> None:
        if self.loaded is None or _memory_of(self.loaded) != _memory_of(loaded):
            self.residents.switch = self._new_switch(loaded)
        self.loaded = loaded
        self.has_loaded.set()
        self.forecast = (
            Forecast(loaded.profile.cost, self.limits.target_seconds) if loaded.profile is not None else None
        )
        self.preemption.forecast, self.preemption.profile = self.forecast, loaded.profile
        self._link = link
        self.residents.admission_is_due = True

    def _new_switch(self, loaded: Loaded) -> ContextSwitch:
        knee = loaded.profile.cost.knee_tokens(self.limits.max_step_tokens) if loaded.profile else None
        vmm = VMM(
            loaded.kv,
            num_frames=loaded.num_frames,
            max_spaces=self.max_spaces,
            max_model_len=loaded.model.max_model_len,
            prefix_cache=self.prefix_cache,
            eviction=make_eviction(self.cache_policy, knee),
            mapping=self.mapping,
            max_pinned_bytes=self.max_pinned_bytes,
            clock=trio.current_time,
        )
        num_slots: dict[Tier, int] = {"host": loaded.num_host_slots, "disk": loaded.num_disk_slots}
        swap = Swap(vmm, num_slots, self._report_fault, self.swap_reuse, trio.current_time)
        return ContextSwitch(vmm, swap, self.preemption, self.residents.arrive, self.residents.depart)

    def _report_fault(self, message: str) -> None:
        self.on_event("swap", f"{self.name}: {message}")

    def _detach(self, reason: str, is_final: bool) -> None:
        """The device's memory is lost, no process is: they recompute when a driver is back."""
        self._link = None
        self._in_flight.clear()
        self.residents.lose_memory()
        self.rest.settle()
        if is_final:
            for process in list(self.residents.queue.members.values()):
                self.residents.terminate(
                    process, ExitStatus("error", message=f"device {self.name} is lost: {reason}")
                )

    # --- small things ------------------------------------------------------------------------------------

    def oldest_issue_time(self) -> float | None:
        """When the oldest unanswered step was issued, on the kernel's clock; None: nothing is in flight."""
        return self._in_flight[0].issued_at if self._in_flight else None

    def statistics(self) -> CoreStatistics:
        """Count what is there. Cheap: nothing is walked."""
        residents = self.residents
        return CoreStatistics(
            name=self.name,
            mailbox=self.mailbox.statistics(),
            num_processes=len(residents.queue.members),
            num_running=len(residents.queue.running),
            num_waiting=len(residents.queue.waiting),
            num_steps=self.num_steps,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=residents.num_cached_tokens,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=residents.num_preemptions,
            device_seconds=self.device_seconds,
            memory=residents.switch.vmm.statistics() if residents.switch else None,
            swap=residents.switch.swap.statistics() if residents.switch else None,
            grammars=residents.grammars.statistics(),
        )

    def _context_limit(self) -> int:
        return self.loaded.model.max_model_len if self.loaded else 0


def _memory_of(loaded: Loaded) -> tuple[KVFormat, int, int, int]:
    """What the kernel's picture of a device's memory depends on."""
    return loaded.kv, loaded.num_frames, loaded.num_host_slots, loaded.num_disk_slots
