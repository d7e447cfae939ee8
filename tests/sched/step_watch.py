"""A Core that is driven by hand, and a device of few lines that knows which frames steps and copies use."""

from __future__ import annotations

from collections import deque

import attrs

from drivers.sim import SimDriver
from llmos.device import (
    Copy,
    CopyDone,
    CopyPage,
    KVFormat,
    Load,
    Loaded,
    Map,
    Place,
    Release,
    Segment,
    Step,
    StepDone,
)  # fmt: skip
from llmos.proc.pcb import Pid, Process
from llmos.sched.accounts import Accounts
from llmos.sched.batch import BatchLimits
from llmos.sched.core import Core
from llmos.sched.fair import TokenFair
from llmos.sched.memory_options import MemoryOptions
from llmos.sched.messages import CopyFinished, DriverUp, Enqueue, Fork, StepFinished
from llmos.sched.preemption import PreemptionCosts, Switching
from syscalls.sampling import Sampling

SIZE = 4  # tokens of a page
KV = KVFormat("sim", (Segment("K", 16), Segment("V", 16)), 16 * SIZE, SIZE)
NUM_FRAMES = 24
STOP = 7  # a token that ends a turn


def frames_of(place: Place) -> set[int]:
    """Those of the device that a copy has at one end."""
    return set(place.slots) if place.tier == "device" else set()


@attrs.define
class WatchedStep:
    """What a step that is not done yet does to frames."""

    step: Step
    reads: set[int] = attrs.field(factory=set)
    writes: set[int] = attrs.field(factory=set)

    @property
    def copies_pages(self) -> bool:
        """Has it a copy of a page?"""
        return any(isinstance(edit, CopyPage) for edit in self.step.edits)

    def is_disturbed_by(self, copy: Copy) -> bool:
        """Would a copy read what the step writes, or fill what it uses?"""
        read, filled = frames_of(copy.source), frames_of(copy.target)
        return bool(self.writes & (read | filled) or self.reads & filled)


@attrs.define
class WatchedDevice:
    """What was sent to a device and is not done; checks that a copy and a step never meet.

    With `in_turn` that they do not even where they use different frames: none is sent while the other runs.
    """

    in_turn: bool = False
    tables: dict[int, dict[int, tuple[int, ...]]] = attrs.field(factory=dict)  # asid, page: its frames
    steps: deque[WatchedStep] = attrs.field(factory=deque)
    copies: dict[int, Copy] = attrs.field(factory=dict)

    def take_step(self, step: Step) -> None:
        """Carry out its edits, and note which frames it uses."""
        watched = WatchedStep(step)
        for edit in step.edits:
            match edit:
                case Map(asid, vpn, pfns):
                    self.tables.setdefault(asid, {})[vpn] = pfns
                case Release(asid):
                    self.tables.pop(asid, None)
                case CopyPage(sources, targets):
                    watched.reads.update(sources)
                    watched.writes.update(targets)
        for row in step.rows:
            end = row.start + row.num_tokens
            for vpn in range(-(-end // SIZE)):
                watched.reads.update(self.tables[row.asid][vpn])
            for vpn in range(row.start // SIZE, -(-end // SIZE)):
                watched.writes.update(self.tables[row.asid][vpn])
        assert not (self.in_turn and step.rows and self.copies), "a step is sent beside a copy"
        for copy in self.copies.values():
            assert not watched.is_disturbed_by(copy), "a step meets a copy that was sent before it"
        self.steps.append(watched)

    def take_copy(self, copy: Copy, lost: set[int]) -> int | None:
        """Check what a copy waits for; return how many steps that are not done it does not wait for.

        `lost` are steps with a row for memory that was given up since: nobody knows what they use.
        """
        self.copies[copy.id] = copy
        assert (copy.after is None) == self.in_turn
        if copy.after is None:  # it waits for everything
            return None
        meet = {each.step.id for each in self.steps if each.is_disturbed_by(copy)}
        assert all(id <= copy.after for id in meet), "a copy overtakes a step that uses its frames"
        unknown = {each.step.id for each in self.steps if each.copies_pages} | lost
        assert copy.after <= max(meet | unknown, default=0), "a copy waits in vain"
        return sum(each.step.id > copy.after for each in self.steps)


@attrs.define
class DrivenCore:
    """A Core whose loop is the test: it plans, and is told of ends, when the test says so."""

    core: Core
    device: WatchedDevice = attrs.field(factory=WatchedDevice)
    ended: list[Process] = attrs.field(factory=list)
    processes: list[Process] = attrs.field(factory=list)
    num_copies: int = 0
    num_overtaking: int = 0  # copies that may begin before a step that was sent before them is done
    num_waiting: int = 0  # that must wait for one

    def spawn(self, length: int, max_tokens: int, num_samples: int = 1, *, interactive: bool = False) -> None:
        """Processes with one prompt; prompts of equal lengths are equal, others part in the middle."""
        prompt = [*range(10, 10 + length // 2), *([length] * (length - length // 2))]
        processes = [self._make(prompt, max_tokens, interactive=interactive) for _ in range(num_samples)]
        self.core._handle(Enqueue(processes))

    def fork(self, parent: Process) -> None:
        """A child of a process, from where that is now."""
        child = self._make([], 0, interactive=parent.interactive)
        self.core._handle(Fork(parent, [child], lambda error: error and self.processes.remove(child)))

    def _make(self, prompt: list[int], max_tokens: int, *, interactive: bool) -> Process:
        pid, length = len(self.processes) + 1, len(prompt)
        process = Process(
            pid=Pid(pid), tenant="t", session=None, model="sim", device="sim:0",
            sampling=Sampling(seed=pid), stop_tokens=frozenset({STOP}), spawned_at=0.0, arrival=pid,
            tokens=list(prompt), turn_start=length, max_tokens=max_tokens, num_prompt_tokens=length,
            num_uncharged=length, interactive=interactive,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def plan(self) -> bool:
        """One turn of the loop: what is sent reaches the device. False: nothing was."""
        orders = self.core._plan()
        for order in orders:
            if isinstance(order, Step):
                self.device.take_step(order)
            else:
                lost = {
                    flight.step.id
                    for flight in self.core.in_flight._steps
                    for process, epoch, *_ in flight.entries
                    if process.epoch != epoch
                }
                switch = self.core.residents.switch
                assert switch is not None
                assert not switch.vmm.has_page_copies, (
                    "pages are copied first, where that was asked for first"
                )
                num_overtaken = self.device.take_copy(order, lost)
                self.num_copies += 1
                self.num_overtaking += bool(num_overtaken)
                self.num_waiting += bool(order.after)
        return bool(orders)

    def end_step(self, *, stops: bool = False) -> None:
        """The oldest step is done; with `stops` its first sampling row samples the token that ends turns."""
        if not self.device.steps:
            return
        step = self.device.steps.popleft().step
        tokens: list[int | None] = []
        for row in step.rows:
            tokens.append((STOP if stops else 100 + row.start) if row.sample else None)
            stops = stops and not row.sample
        self.core._handle(StepFinished(StepDone(step.id, tuple(tokens), 0.01)))

    def end_copy(self, index: int) -> None:
        """A copy has ended, if the step is done that it must wait for."""
        able = [copy for copy in self.device.copies.values() if self.may_run(copy)]
        if able:
            copy = able[index % len(able)]
            del self.device.copies[copy.id]
            self.core._handle(CopyFinished(CopyDone(copy.id, 0.001)))

    def may_run(self, copy: Copy) -> bool:
        """Is everything done that a copy must wait for?"""
        ids = [each.step.id for each in self.device.steps]
        return not ids or (copy.after is not None and copy.after < ids[0])

    def finish(self) -> None:
        """Plan, and end everything, until nothing is left to do."""
        while self.plan() or self.device.steps or self.device.copies:
            self.end_copy(0)
            self.end_step()


async def open_driven_core(
    *, switching: Switching = "async", num_frames: int = NUM_FRAMES, steps_in_flight: int = 2
) -> DrivenCore:
    """A Core with memory for a few processes, that swaps where it can."""
    sim = SimDriver(kv=KV, num_frames=num_frames)
    await sim.receive()  # Hello
    host_bytes = 200 * KV.frame_bytes
    await sim.send(Load("", "sim", "auto", "auto", None, None, 8, None, 64, host_bytes=host_bytes))
    loaded = await sim.receive()
    assert isinstance(loaded, Loaded)
    limits = BatchLimits(max_step_tokens=64, max_rows=4, max_chunk_tokens=6, steps_in_flight=steps_in_flight)
    accounts = Accounts()
    ended: list[Process] = []
    costs = PreemptionCosts(preempt="swap", switching=switching, max_step_tokens=64)
    memory = MemoryOptions(max_spaces=8)
    core = Core("sim:0", TokenFair(accounts), accounts, limits, 4, memory, ended.append, preemption=costs)
    core._handle(DriverUp(sim, loaded))
    return DrivenCore(core, WatchedDevice(in_turn=switching == "sync"), ended)
