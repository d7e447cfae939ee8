"""The simulated driver: lives in the kernel's process and finishes on the run's clock.

It answers the same messages as a real driver, takes the time that a cost model says, and checks everything
the kernel does with its memory: a mistake that would make a real device read wrong keys ends in a
`ProtocolViolation`, raised where the kernel sent the message, or in tokens that `expected_tokens` disowns.
"""

from __future__ import annotations

import math

import attrs
import msgspec
import trio

from drivers.sim_grammars import SimGrammars
from drivers.sim_memory import ProtocolViolation, SimMemory
from drivers.sim_model import SimModel
from drivers.sim_outbox import SimOutbox
from drivers.sim_rows import SimRows, work_of
from drivers.sim_tiers import SimTiers
from llmos.cost import CopyCost, CostModel, Profile
from llmos.device import (
    DRIVER_ABI,
    Bind,
    Compile,
    Compiled,
    Copy,
    CopyDone,
    CopyFault,
    CopyPage,
    Edit,
    Failed,
    Forget,
    FromDriver,
    Hello,
    KVFormat,
    Load,
    Loaded,
    Map,
    Release,
    Reserve,
    Segment,
    Step,
    StopDriver,
    Tier,
    ToDriver,
    choose_kv_format,
)  # fmt: skip

__all__ = ["ProtocolViolation", "SimDriver", "SimFaults", "SimModel", "SimStatistics"]

BYTES_PER_TOKEN = 16  # in each segment: what a slot would take
DEFAULT_KV = KVFormat(
    "sim", (Segment("K", BYTES_PER_TOKEN), Segment("V", BYTES_PER_TOKEN)), 16 * BYTES_PER_TOKEN, 16
)
DEFAULT_COST = CostModel(base=0.01, per_token=1e-4)
NUM_STEP_ENDS = 8  # remembered: more steps than are in flight
DEFAULT_HOST_COST = CopyCost(base=1e-5, bytes_per_second=1e6)  # a page of 512 bytes in half a millisecond
DEFAULT_DISK_COST = CopyCost(base=1e-4, bytes_per_second=1e5)


@attrs.frozen
class SimFaults:
    """What goes wrong, and when. Steps count from 1 over the driver's life."""

    fail_load: str | None = None  # refuse to load, with this message
    die_after_step: int | None = None  # answer so many steps, then be lost
    hang_after_step: int | None = None  # answer so many steps, then answer nothing any more
    faulty_token: int | None = None  # a row that carries this token is answered by a RowFault
    faulty_copies: frozenset[int] = frozenset()  # the first slot of these copies, by id, fails
    full_tiers: frozenset[Tier] = frozenset()  # what is to be written there fails


@attrs.frozen
class SimStatistics:
    """Counters since the driver started, and what is open now."""

    num_steps: int
    num_rows: int
    num_tokens: int
    num_maps: int
    num_copied_pages: int
    num_spaces: int
    num_mapped_frames: int
    num_copies: int  # between tiers
    num_copied_bytes: int


@attrs.define(eq=False, kw_only=True)
class SimDriver:
    """A `DriverLink` whose far end is simulated.

    Args:
        name: device name, "sim:0".
        cost: seconds that each step takes; it is also what the driver says of itself.
        slowness: how many times longer than that steps really take; may be set at any time.
        num_frames: physical frames of the device, where a load does not say how much memory to take.
        max_slots: most slots of each lower tier: what tests call too little.
        host_cost: of copies to and from the host area.
        disk_cost: of copies to and from the swap file, and to and from images.
        kv: segments, and tokens per page where a load does not say how large a frame is.
        model: vocabulary and end tokens.
        max_model_len: longest context in tokens that it can be asked for; a load may ask for less.
        faults: what goes wrong.
        load_seconds: time that a load takes.
        compile_seconds: time that a grammar takes, beside steps and other grammars; None: it follows none.
            Any text is one that does not begin with "bad"; another text gives other tokens.
        encodes: it is an encoder, which only makes vectors, of texts that come whole.
        record: keep every step in `steps`, for tests that look at batches.
    """

    name: str = "sim:0"
    cost: CostModel = DEFAULT_COST
    slowness: float = 1.0
    num_frames: int = 1024
    max_slots: int = 1 << 30  # of each tier below, whatever the load asks for
    host_cost: CopyCost = DEFAULT_HOST_COST
    disk_cost: CopyCost = DEFAULT_DISK_COST
    kv: KVFormat = DEFAULT_KV
    model: SimModel = attrs.field(factory=SimModel)
    max_model_len: int = 4096
    faults: SimFaults = attrs.field(factory=SimFaults)
    load_seconds: float = 0.0
    compile_seconds: float | None = None
    encodes: bool = False
    record: bool = False

    steps: list[Step] = attrs.field(factory=list, init=False)
    violations: list[str] = attrs.field(factory=list, init=False)  # also raised, one by one
    memory: SimMemory = attrs.field(init=False)
    tiers: SimTiers = attrs.field(init=False)
    outbox: SimOutbox = attrs.field(init=False)
    _grammars: SimGrammars = attrs.field(init=False)
    _rows: SimRows = attrs.field(init=False)
    _load: Load | None = attrs.field(default=None, init=False)
    _busy_until: float = attrs.field(default=-math.inf, init=False)
    _copier_busy_until: dict[str, float] = attrs.field(factory=dict, init=False)
    _step_ends: dict[int, float] = attrs.field(factory=dict, init=False)  # of the last few steps, by id
    _num_steps: int = attrs.field(default=0, init=False)
    _num_rows: int = attrs.field(default=0, init=False)
    _num_tokens: int = attrs.field(default=0, init=False)
    _num_maps: int = attrs.field(default=0, init=False)
    _num_copied_pages: int = attrs.field(default=0, init=False)
    _num_copies: int = attrs.field(default=0, init=False)
    _num_copied_bytes: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.memory = SimMemory(self.kv, self.num_frames)
        self._rows = SimRows(
            model=self.model,
            memory=self.memory,
            max_model_len=self.max_model_len,
            encodes=self.encodes,
            faulty_token=self.faults.faulty_token,
        )
        self.tiers = SimTiers(self.memory, {})
        self._grammars = SimGrammars(self.compile_seconds)
        self.outbox = SimOutbox(self.name)
        memory_bytes = self.num_frames * self.kv.frame_bytes
        hello = Hello(DRIVER_ABI, "sim", self.name, "simulated device", memory_bytes, 1, None)
        self.outbox.post(-math.inf, hello)

    # --- the link ----------------------------------------------------------------------------------------

    async def send(self, message: ToDriver) -> None:
        """Take a message. What it does to memory happens now, its answer comes when the cost model says."""
        await trio.lowlevel.checkpoint()
        self.outbox.check_alive()
        try:
            match message:
                case Load():
                    self._answer(self.load_seconds, self._load_model(message))
                case Step():
                    self._take_step(message)
                case Copy():
                    self._take_copy(message)
                case Compile():
                    done = self._grammars.compile(message)
                    self.outbox.post(trio.current_time() + done.seconds, done)
                case Forget(id):
                    self._grammars.forget(id)
                case StopDriver():
                    self.outbox.die(max(trio.current_time(), self._busy_until), "stopped")
        except ProtocolViolation as violation:
            self.violations.append(str(violation))
            raise

    async def receive(self) -> FromDriver:
        """Wait for the next answer. Raises DriverLost when the driver is dead and its answers are read."""
        answer = await self.outbox.receive()
        if isinstance(answer, Compiled):
            self._grammars.note_told(answer)
        return self.tiers.end(answer) if isinstance(answer, CopyDone) else answer

    async def aclose(self) -> None:
        """End the driver now. Idempotent; a checkpoint."""
        self.outbox.die(trio.current_time(), "closed")
        await trio.lowlevel.checkpoint()

    def kill(self, why: str = "killed") -> None:
        """Lose the device at once, with all its memory and the steps in flight. Not a checkpoint."""
        self.outbox.die(trio.current_time(), why)

    def statistics(self) -> SimStatistics:
        """Count what was done and what is open."""
        return SimStatistics(
            num_steps=self._num_steps,
            num_rows=self._num_rows,
            num_tokens=self._num_tokens,
            num_maps=self._num_maps,
            num_copied_pages=self._num_copied_pages,
            num_spaces=len(self.memory.spaces),
            num_mapped_frames=self.memory.num_mapped_frames,
            num_copies=self._num_copies,
            num_copied_bytes=self._num_copied_bytes,
        )

    def _answer(self, seconds: float, message: FromDriver) -> None:
        self._busy_until = max(trio.current_time(), self._busy_until) + seconds
        self.outbox.post(self._busy_until, message)

    # --- the device --------------------------------------------------------------------------------------

    def _load_model(self, load: Load) -> Loaded | Failed:
        if self.faults.fail_load is not None:
            return Failed(self.faults.fail_load)
        if self.memory.spaces:
            raise ProtocolViolation(f"a load while {len(self.memory.spaces)} spaces are open")
        if (problem := self._lay_out_memory(load)) is not None:
            return Failed(problem)
        self._load = load
        max_model_len = min(self.max_model_len, load.max_model_len or self.max_model_len)
        self._rows.max_model_len = max_model_len
        info = self.model.info(load.name, load.path, max_model_len, self.encodes)
        num_slots: dict[Tier, int] = {
            "host": min(self.max_slots, load.host_bytes // self.memory.kv.frame_bytes),
            "disk": min(self.max_slots, load.disk_bytes // self.memory.kv.frame_bytes),
        }
        self.tiers.num_slots = num_slots
        profile = Profile(
            self.cost,
            error=0.0,
            num_steps=0,
            seconds=0.0,
            host=self.host_cost if num_slots["host"] else None,
            disk=self.disk_cost if num_slots["disk"] else None,
        )
        return Loaded(
            info,
            self.memory.kv,
            self.memory.num_frames,
            self.load_seconds,
            profile=profile,
            num_host_slots=num_slots["host"],
            num_disk_slots=num_slots["disk"],
            takes_grammars=self.compile_seconds is not None,
        )

    def _lay_out_memory(self, load: Load) -> str | None:
        """Cut the memory that a load takes into frames of the size it names; returns what is wrong."""
        kv, pool_bytes = self.kv, load.pool_bytes
        if pool_bytes is None:
            pool_bytes = self.num_frames * kv.frame_bytes
        if load.frame_bytes is not None:
            try:
                kv = choose_kv_format(kv.name, kv.segments, load.frame_bytes)
            except ValueError as error:
                return str(error)
        num_frames = pool_bytes // kv.frame_bytes
        if num_frames < kv.frames_per_page:
            return (
                f"a pool of {num_frames} frames of {kv.frame_bytes} bytes is too small: one page of "
                f"{kv.tokens_per_page} tokens takes {kv.frames_per_page}"
            )
        self.memory.lay_out(kv, num_frames)
        return None

    def _take_copy(self, copy: Copy) -> None:
        """Start a copy beside the steps; each tier copies one after the other, in each direction."""
        if self._load is None:
            raise ProtocolViolation(f"copy {copy.id} before a model was loaded")
        self.tiers.begin(copy)
        self._num_copies += 1
        self._num_copied_bytes += len(copy.source.slots) * self.memory.kv.frame_bytes
        places = {copy.source.tier, copy.target.tier}
        cost = self.host_cost if places == {"device", "host"} else self.disk_cost
        seconds = self.tiers.seconds(copy, self._load, cost.base, cost.bytes_per_second)
        line = f"{copy.source.tier} to {copy.target.tier}"
        # What was sent before is done first, or what it says that it must wait for.
        begins = self._busy_until
        if copy.after is not None:
            done = [id for id, ends_at in self._step_ends.items() if ends_at <= trio.current_time()]
            self.memory.check_unused(copy, max(copy.after, *done, 0))
            begins = self._step_ends.get(copy.after, -math.inf)
        start = max(trio.current_time(), begins, self._copier_busy_until.get(line, -math.inf))
        self._copier_busy_until[line] = start + seconds
        faults: tuple[CopyFault, ...] = ()
        if copy.id in self.faults.faulty_copies:
            faults = (CopyFault(0, f"{copy.target.tier} slot {copy.target.slots[0]} cannot be written"),)
        if copy.target.tier in self.faults.full_tiers:
            faults = tuple(
                CopyFault(i, f"{copy.target.tier} slot {slot}: no space left")
                for i, slot in enumerate(copy.target.slots)
            )
        self.outbox.post(start + seconds, CopyDone(copy.id, seconds, (), faults))

    def _take_step(self, step: Step) -> None:
        if self._load is None:
            raise ProtocolViolation(f"step {step.id} before a model was loaded")
        self._num_steps += 1
        if self.faults.hang_after_step is not None and self._num_steps > self.faults.hang_after_step:
            return
        if self.faults.die_after_step is not None and self._num_steps > self.faults.die_after_step:
            self.outbox.die(max(trio.current_time(), self._busy_until), f"died before step {step.id}")
            return
        if self.record:
            self.steps.append(step)
        self.memory.step_id = step.id
        for edit in step.edits:
            self._apply(edit)
        asids = [row.asid for row in step.rows]
        if len(set(asids)) < len(asids):
            raise ProtocolViolation(f"step {step.id} has two rows of one space: {sorted(asids)}")
        work = work_of(step.rows)
        num_tokens = work.num_tokens
        if num_tokens > self._load.max_step_tokens and not (self.encodes and len(step.rows) == 1):
            raise ProtocolViolation(
                f"step {step.id} has {num_tokens} tokens; the limit is {self._load.max_step_tokens}"
            )
        seconds = self.slowness * self.cost.step_seconds(work)
        self._num_rows += len(step.rows)
        self._num_tokens += num_tokens
        done = self._rows.run(step.rows).done(step.id, seconds)
        ended_at = max(trio.current_time(), self._busy_until) + seconds
        self._answer(seconds, msgspec.structs.replace(done, ended_at=ended_at))
        self._step_ends[step.id] = ended_at
        self._step_ends.pop(step.id - NUM_STEP_ENDS, None)

    def _apply(self, edit: Edit) -> None:
        match edit:
            case Reserve(asid):
                if self._load is not None and not 0 <= asid < self._load.max_spaces:
                    raise ProtocolViolation(f"space {asid} reserved; the device has {self._load.max_spaces}")
                self.memory.reserve(asid)
            case Release(asid):
                self.memory.release(asid)
                self._rows.samplers.pop(asid, None)
            case Map():
                self.memory.map(edit, self.memory.kv.num_pages(self._rows.max_model_len))
                self._num_maps += 1
            case CopyPage():
                self.memory.copy(edit)
                self._num_copied_pages += 1
            case Bind():
                self.memory.space(edit.asid)
                self._rows.bind(self._grammars.resolve(edit))
