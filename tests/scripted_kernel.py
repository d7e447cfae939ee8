"""A kernel whose processes say what a test tells them to, behind the real protocol on a Unix socket.

Its process table, blocking reads, turns, stops and kills behave as the contract says; only the model is a
script. Token ids 0 to 255 are bytes, so `say("text")` needs no model, and `write_model_folder` makes a
tokenizer and a chat template to match.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import assert_never

import attrs
import msgspec
import trio
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from syscalls.codec import Answer, Request
from syscalls.device import LoadModel, ModelLoaded, Sleep, UnloadModel, Wake
from syscalls.embedding import Embed, EmbeddingInfo
from syscalls.errno import Errno, SyscallError
from syscalls.image import (
    Checkpoint,
    Checkpointed,
    ImageInfo,
    ImageList,
    Images,
    RemoveImage,
    Restore,
)
from syscalls.memory import (
    CacheDropped,
    DeviceMemory,
    DropCache,
    FrameMapList,
    Frames,
    MapList,
    MapRange,
    Maps,
    Meminfo,
    MemoryInfo,
    ProcessMemory,
    TenantMemory,
    TierMemory,
)
from syscalls.process import (
    Cont,
    ExitStatus,
    Fork,
    Kill,
    Nice,
    Output,
    ProcessInfo,
    ProcessList,
    Ps,
    Read,
    Spawn,
    Spawned,
    Stat,
    Stop,
    TimelineEntry,
    Trace,
    TraceEvent,
    TraceList,
    Usage,
    Wait,
    Waited,
    Why,
    WhyInfo,
    Write,
)
from syscalls.sampling import TokenLogprobs
from syscalls.system import (
    CacheInfo,
    DeviceInfo,
    DeviceList,
    Devices,
    Done,
    Event,
    EventList,
    Events,
    MapInfo,
    Model,
    ModelList,
    Models,
    Ping,
    Shutdown,
    Statistics,
    StatisticsInfo,
)
from syscalls.tenant import (
    Identity,
    Limits,
    Rate,
    Rates,
    ReloadTenants,
    ShareList,
    Shares,
    TenantInfo,
    TenantList,
    Tenants,
    TenantShare,
    TenantsReloaded,
    Whoami,
)  # fmt: skip
from tests.syscalls.fake_kernel import FakeKernel, FakeSession, open_fake_kernel

END, USER, ASSISTANT, SYSTEM = 256, 257, 258, 259
SPECIAL_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 4096
VECTOR_SIZE = 16
STOPPED_BY_MODEL = ExitStatus("stop", stop_token=END)


def write_model_folder(
    folder: Path,
    *,
    has_template: bool = True,
    template: str = CHAT_TEMPLATE,
    more_special_tokens: tuple[str, ...] = (),
) -> Path:
    """Write the text files of a model whose tokens are bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {character: byte for byte, character in enumerate(_list_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (*SPECIAL_TOKENS, *more_special_tokens)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    if has_template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def _list_byte_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)]


def read_tokens(tokens: tuple[int, ...] | list[int]) -> str:
    """Return tokens as text, special ones spelled out."""
    return b"".join(
        bytes([token]) if token < 256 else SPECIAL_TOKENS[token - 256].encode() for token in tokens
    ).decode()


def count_tokens(tokens: Sequence[int], *, normalise: bool) -> bytes:
    """The vector of an input: how often it has tokens of each of VECTOR_SIZE kinds."""
    counts = [0.0] * VECTOR_SIZE
    for token in tokens:
        counts[token % VECTOR_SIZE] += 1.0
    length = math.sqrt(sum(count * count for count in counts)) if normalise else 1.0
    return struct.pack(f"<{VECTOR_SIZE}f", *(count / length for count in counts))


@attrs.define(eq=False)
class ScriptedProcess:
    """One process. Programs use `say`, `emit` and the fields; the kernel does the rest."""

    pid: int
    spawn: Spawn
    seed: int
    session: FakeSession
    sample: int = 0  # index among the samples of its spawn
    parent: int | None = None
    label: str = ""
    tokens: list[int] = attrs.field(factory=list)  # prompt and output of all turns
    output: list[int] = attrs.field(factory=list)
    logprobs: list[TokenLogprobs] = attrs.field(factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    vector: bytes = b""
    end: ExitStatus | None = None  # of the process, or of the turn that is over
    is_zombie: bool = False
    is_stopped: bool = False
    nice: int = 0
    num_prompt_tokens: int = 0
    max_tokens: int = CONTEXT
    num_turn_output: int = 0
    num_computed: int | None = None  # as stat tells; None: all of its tokens
    num_cached_tokens: int = 0
    num_read: int = 0  # tokens of its output that have arrived at its reader
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)  # of the running turn
    _changed: trio.Event = attrs.field(factory=trio.Event)

    @property
    def prompt(self) -> str:
        """Everything it was told and has said, special tokens spelled out."""
        return read_tokens(self.tokens)

    @property
    def state(self) -> str:
        """As ps prints it."""
        if self.is_zombie:
            return "ZOMBIE"
        if self.is_stopped:
            return "STOPPED"
        return "BLOCKED(Input)" if self.end is not None else "RUNNING"

    async def say(self, text: str) -> None:
        """Output a text byte by byte."""
        await self.emit(*text.encode())

    async def emit(self, *tokens: int, logprobs: tuple[TokenLogprobs, ...] = ()) -> None:
        """Output tokens one by one, each visible to readers at once; ends the turn at max_tokens."""
        for index, token in enumerate(tokens):
            while self.is_stopped:
                await self.wait_change()
            self.output.append(token)
            self.tokens.append(token)
            if logprobs:
                self.logprobs.append(logprobs[index])
            self.num_turn_output += 1
            self.change()
            if self.num_turn_output >= self.max_tokens:
                raise LimitReached
            await trio.lowlevel.checkpoint()

    async def wait_read(self) -> None:
        """Wait until all that was output has arrived at its reader, who asks for more."""
        while self.num_read < len(self.output):
            await self.wait_change()

    async def wait_change(self) -> None:
        """Wait until anything about the process changes."""
        await self._changed.wait()

    def change(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = trio.Event()


class LimitReached(Exception):
    """The turn has output max_tokens."""


Program = Callable[[ScriptedProcess], Awaitable[ExitStatus]]


async def say_hello(process: ScriptedProcess) -> ExitStatus:
    """The default program: a greeting and an end token."""
    await process.say("hello")
    await process.emit(END)
    return STOPPED_BY_MODEL


async def take_a_moment(process: ScriptedProcess) -> None:
    """What an embedding takes, unless a test says otherwise."""
    await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class ScriptedKernel:
    """What the sessions share. Tests read and change its fields."""

    program: Program
    models: list[Model]
    nursery: trio.Nursery
    loading: list[str] = attrs.field(factory=list)  # names of models that are not there yet
    devices: list[DeviceInfo] = attrs.field(factory=lambda: [make_device()])
    processes: dict[int, ScriptedProcess] = attrs.field(factory=dict)
    spawned: list[ScriptedProcess] = attrs.field(factory=list)  # all there ever were
    images: dict[str, tuple[ScriptedProcess, ImageInfo]] = attrs.field(
        factory=dict
    )  # the process they are of
    events: list[Event] = attrs.field(factory=list)
    calls: list[Request] = attrs.field(factory=list)
    refusals: dict[type[Request], SyscallError] = attrs.field(factory=dict)  # calls that fail, and how
    embedding: Callable[[ScriptedProcess], Awaitable[None]] = take_a_moment  # before a vector is there
    unanswered: set[type[Request]] = attrs.field(factory=set)  # calls that are done, and never answered
    rates: Rates | None = None  # that spawns tell
    shutdown_grace: float | None = None  # once it was asked for
    _has_event: trio.Event = attrs.field(factory=trio.Event)
    _known_sessions: set[int] = attrs.field(factory=set)

    def record(
        self, text: str, *, level: str = "info", subsystem: str = "test", pid: int | None = None
    ) -> None:
        """Add a kernel event."""
        sequence = len(self.events) + 1
        self.events.append(Event(sequence, 1_700_000_000.0 + sequence, level, subsystem, text, pid))
        self._has_event.set()
        self._has_event = trio.Event()

    async def answer(self, session: FakeSession, body: Request) -> Answer:
        """Carry out one call, as the contract says."""
        self.calls.append(body)
        if type(body) in self.refusals:
            raise self.refusals[type(body)]
        answer = await self._carry_out(session, body)
        if type(body) in self.unanswered:
            await trio.sleep_forever()
        return answer

    async def _carry_out(self, session: FakeSession, body: Request) -> Answer:
        match body:
            case Spawn():
                return self._spawn(session, body)
            case Embed():
                return self._embed(session, body)
            case Fork(pid, count, seeds, label=label):
                parent = self._find(pid)
                if parent.is_zombie:
                    raise SyscallError(Errno.EBUSY, f"process {pid} has exited")
                is_over = parent.end is not None
                children = [
                    self._fork(parent, session, seeds[i] if seeds else None, is_over=is_over)
                    for i in range(count)
                ]
                for child in children:
                    child.label = child.label if label is None else label
                return Spawned(
                    tuple(child.pid for child in children), tuple(child.seed for child in children)
                )
            case Wait(pid):
                process = self._find(pid)
                while not process.is_zombie:
                    await process.wait_change()
                self.processes.pop(pid, None)
                assert process.end is not None
                return Waited(pid, process.end, self._usage(process))
            case Read(pid, offset):
                return await self._read(self._find(pid), offset)
            case Write(pid, tokens, max_tokens):
                self._write(self._find(pid), tokens, max_tokens)
            case Kill(pid):
                self.kill(self._find(pid))
            case Stop(pid):
                process = self._find(pid)
                if process.is_zombie:
                    raise SyscallError(Errno.EBUSY, f"process {pid} has exited")
                process.is_stopped = True
            case Cont(pid):
                process = self._find(pid)
                if not process.is_stopped:
                    raise SyscallError(Errno.EBUSY, f"process {pid} is not stopped")
                process.is_stopped = False
                process.change()
            case Nice(pid, nice):
                self._find(pid).nice = nice
            case Ps():
                return ProcessList(
                    tuple(self._describe(self.processes[pid]) for pid in sorted(self.processes))
                )
            case Stat(pid):
                return self._describe(self._find(pid))
            case Trace(pid, since):
                self._find(pid)
                events = (
                    TraceEvent(1, "spawned", 0.0),
                    TraceEvent(2, "prefill", 0.001, num_tokens=5),
                    TraceEvent(3, "read", 0.002, 0.5, text="offset=3", result="2 tokens", session=7),
                    TraceEvent(4, "ended", 0.6, text="stop"),
                )
                batch = events[:2] if since < 3 else events[2:]
                return TraceList(batch, batch[-1].sequence + 1, 5 if since == 3 else 0, since == 3)
            case Why(pid):
                return self._explain(self._find(pid))
            case Meminfo():
                return MemoryInfo(tuple(self._account(device) for device in self.devices))
            case Maps(pid):
                self._find(pid)
                return MapList(
                    pid, self.devices[0].name, (MapRange(0, 128, "shared", 2, 1 << 20),
                    MapRange(128, 384, "private", 1, 2 << 20)),
                )  # fmt: skip
            case Sleep() | Wake():
                state = "sleeping" if isinstance(body, Sleep) else "ready"
                self.devices = [msgspec.structs.replace(device, state=state) for device in self.devices]
                return Done()
            case LoadModel(path, name):
                model = msgspec.structs.replace(self.models[0], name=name or path.rpartition("/")[2])
                self.models.append(model)
                return ModelLoaded("sim:1", model)
            case UnloadModel(name) if [model.name for model in self.models] == [name]:
                raise SyscallError(Errno.EBUSY, "processes of the last one wait for input")
            case UnloadModel(name):
                self.models = [model for model in self.models if model.name != name]
                return Done()
            case DropCache():
                return CacheDropped(5)
            case Whoami():
                return Identity(session.tenant, session.tenant == "tester", 1, 1000)
            case Tenants():
                return TenantList(tuple(self._describe_tenant(share) for share in self._list_shares()))
            case Checkpoint(pid, name, overwrite):
                return self._checkpoint(self._find(pid), name, overwrite)
            case Restore(name):
                saved, _ = self._find_image(name)
                copy = self._fork(saved, session, None, is_over=saved.spawn.interactive)
                copy.parent = None
                return Spawned((copy.pid,), (copy.seed,))
            case Images():
                return ImageList(tuple(info for _, info in self.images.values()))
            case RemoveImage(name):
                self._find_image(name)
                del self.images[name]
            case Frames():
                return FrameMapList(())  # as of devices that have not loaded a model
            case ReloadTenants():
                return TenantsReloaded(("carol",), (), ("bob",), 2)
            case Shares():
                return ShareList(self._list_shares())
            case Devices():
                return DeviceList(tuple(self.devices))
            case Models():
                return ModelList(tuple(self.models), tuple(self.loading))
            case Events(since, limit, follow):
                while not (found := [event for event in self.events if event.sequence >= since]) and follow:
                    await self._has_event.wait()
                return EventList(tuple(found[-limit:]))
            case Statistics(exposition):
                return self._count("llmos_processes 1\n" if exposition else "")
            case Shutdown(grace):
                self.shutdown_grace = grace
            case Ping():
                pass
            case _:
                assert_never(body)
        return Done()

    def kill(self, process: ScriptedProcess, reason: str = "killed by the test") -> None:
        """End a process in any state."""
        if not process.is_zombie:
            process.end = ExitStatus("killed", message=reason)
            process.is_zombie = True
            process.scope.cancel()
            process.change()

    # --- calls ---------------------------------------------------------------------------------------------

    def _find(self, pid: int) -> ScriptedProcess:
        if pid not in self.processes:
            raise SyscallError(Errno.ESRCH, f"no process {pid}")
        return self.processes[pid]

    def _checkpoint(self, process: ScriptedProcess, name: str, overwrite: bool) -> Checkpointed:
        if name in self.images and not overwrite:
            raise SyscallError(Errno.EEXIST, f"there is an image {name}; it was not replaced")
        length = len(process.tokens)
        info = ImageInfo(
            name,
            3 << 20,
            1_700_000_000.0,
            length,
            length - 1,
            len(process.output),
            process.spawn.interactive,
            "scripted",
            process.label,
        )
        self.images[name] = (process, info)
        return Checkpointed(name, info.num_bytes, length, length - 1, 0.25)

    def _find_image(self, name: str) -> tuple[ScriptedProcess, ImageInfo]:
        if name not in self.images:
            raise SyscallError(Errno.ENOENT, f"no image {name}")
        return self.images[name]

    def _spawn(self, session: FakeSession, body: Spawn) -> Spawned:
        if not body.prompt:
            raise SyscallError(Errno.EINVAL, "prompt is empty")
        if body.model not in (None, *(model.name for model in self.models)):
            raise SyscallError(Errno.ENOENT, f"no model {body.model!r}")
        length = len(body.prompt) + (body.max_tokens or 1)
        if length > CONTEXT:
            raise SyscallError(Errno.E2BIG, f"the context is {CONTEXT} tokens; {length} were asked for")
        if (problem := body.sampling.explain_invalid()) is not None:
            raise SyscallError(Errno.EINVAL, problem)
        first_seed = 1000 if body.sampling.seed is None else body.sampling.seed
        made = []
        for index in range(body.num_samples):
            process = self._add(session, body, first_seed + index, index)
            process.tokens = list(body.prompt)
            process.num_prompt_tokens = len(body.prompt)
            process.max_tokens = body.max_tokens or CONTEXT - len(body.prompt)
            self._start_turn(process)
            made.append(process)
        pids, seeds = tuple(process.pid for process in made), tuple(process.seed for process in made)
        return Spawned(pids, seeds, self.rates)

    def _embed(self, session: FakeSession, body: Embed) -> Spawned:
        made = []
        for tokens in body.inputs:
            given = Spawn(tokens, label=body.label, auto_reap=body.auto_reap, model=body.model)
            process = self._add(session, given, 0, 0)
            process.tokens, process.num_prompt_tokens = list(tokens), len(tokens)
            self.nursery.start_soon(self._make_vector, process, body.normalise)
            made.append(process)
        return Spawned(tuple(process.pid for process in made), (0,) * len(made), self.rates)

    async def _make_vector(self, process: ScriptedProcess, normalise: bool) -> None:
        with process.scope:
            await self.embedding(process)
            process.vector = count_tokens(process.tokens, normalise=normalise)
            process.end, process.is_zombie = ExitStatus("stop"), True
            process.change()

    def _fork(
        self, parent: ScriptedProcess, session: FakeSession, seed: int | None, *, is_over: bool = False
    ) -> ScriptedProcess:
        child = self._add(session, parent.spawn, parent.seed if seed is None else seed, parent.sample)
        child.parent, child.label = parent.pid, parent.label
        child.tokens, child.output = list(parent.tokens), list(parent.output)
        child.num_prompt_tokens, child.max_tokens = parent.num_prompt_tokens, parent.max_tokens
        if is_over:
            child.end = STOPPED_BY_MODEL
        else:
            self._start_turn(child)
        return child

    def _add(self, session: FakeSession, body: Spawn, seed: int, sample: int) -> ScriptedProcess:
        process = ScriptedProcess(
            len(self.spawned) + 1, body, seed, session, sample, nice=body.nice, label=body.label
        )
        self.processes[process.pid] = process
        self.spawned.append(process)
        if id(session) not in self._known_sessions:
            self._known_sessions.add(id(session))
            self.nursery.start_soon(self._end_with_session, session)
        return process

    async def _end_with_session(self, session: FakeSession) -> None:
        await session.ended.wait()
        for process in list(self.processes.values()):
            if process.session is session and not process.spawn.detached:
                self.kill(process, "its session has ended")
                self.processes.pop(process.pid, None)

    def _start_turn(self, process: ScriptedProcess) -> None:
        process.end = None
        process.num_turn_output = 0
        process.scope = trio.CancelScope()
        self.nursery.start_soon(self._run_turn, process)

    async def _run_turn(self, process: ScriptedProcess) -> None:
        with process.scope:
            try:
                end = await self.program(process)
            except LimitReached:
                end = ExitStatus("length")
            process.end = end
            process.is_zombie = not process.spawn.interactive
            process.change()

    async def _read(self, process: ScriptedProcess, offset: int) -> Output:
        if not 0 <= offset <= len(process.output):
            raise SyscallError(Errno.EINVAL, f"offset is {offset}; there are {len(process.output)} tokens")
        if offset > process.num_read:
            process.num_read = offset
            process.change()
        while len(process.output) <= offset and process.end is None:
            await process.wait_change()
        if process.is_zombie and process.spawn.auto_reap:
            self.processes.pop(process.pid, None)
        return Output(
            offset,
            tuple(process.output[offset:]),
            tuple(process.logprobs[offset:]),
            process.end,
            self._usage(process) if process.end is not None else Usage(),
            process.prompt_logprobs if offset == 0 else (),
            tuple(map(float, range(offset, len(process.output)))) if process.spawn.token_times else (),
            process.vector,
        )

    def _write(self, process: ScriptedProcess, tokens: tuple[int, ...], max_tokens: int | None) -> None:
        if process.is_zombie or process.end is None or not process.spawn.interactive:
            raise SyscallError(Errno.EBUSY, f"process {process.pid} is {process.state}")
        if len(process.tokens) + len(tokens) + (max_tokens or 1) > CONTEXT:
            raise SyscallError(Errno.E2BIG, f"the context is {CONTEXT} tokens")
        process.tokens += tokens
        process.num_prompt_tokens += len(tokens)
        process.max_tokens = max_tokens or CONTEXT - len(process.tokens)
        self._start_turn(process)

    # --- what it says --------------------------------------------------------------------------------------

    def _usage(self, process: ScriptedProcess) -> Usage:
        return Usage(
            num_prompt_tokens=process.num_prompt_tokens,
            num_output_tokens=len(process.output),
            num_cached_tokens=process.num_cached_tokens,
            first_token_seconds=0.25 if process.output else None,
            running_seconds=1.5,
        )

    def _describe(self, process: ScriptedProcess) -> ProcessInfo:
        return ProcessInfo(
            pid=process.pid,
            parent=process.parent,
            tenant="tester",
            state=process.state,
            label=process.label,
            model=process.spawn.model or self.models[0].name,
            device=self.devices[0].name,
            nice=process.nice,
            seed=process.seed,
            num_tokens=len(process.tokens),
            num_computed=len(process.tokens) if process.num_computed is None else process.num_computed,
            max_tokens=process.max_tokens,
            num_resident_bytes=3 << 20,
            num_shared_bytes=1 << 20,
            age_seconds=2.5,
            usage=self._usage(process),
            status=process.end,
            activity="ended" if process.is_zombie else "decode",
        )

    def _explain(self, process: ScriptedProcess) -> WhyInfo:
        entries = (
            TimelineEntry("spawned", 0.0),
            TimelineEntry("queued", 0.0, 1.5, count=3, text="uid:7"),
            TimelineEntry("prefill", 1.5, 0.25, count=2, num_tokens=len(process.spawn.prompt)),
            TimelineEntry("first token", 1.75),
            TimelineEntry("preempted", 2.0, pid=17, text="swap, fair share of bob"),
            TimelineEntry("swapped out", 2.0, 0.5, num_bytes=64 << 20, text="host"),
        )
        spent = {"queued": 1.5, "prefill": 0.25, "decode": 0.25, "swapped": 0.5, "input": 0.0}
        return WhyInfo(process.pid, process.state, "slow to start: told so by the test", entries, 9, spent)

    def _account(self, device: DeviceInfo) -> DeviceMemory:
        used = (device.num_frames - device.num_free_frames - device.num_cached_frames) * device.frame_bytes
        return DeviceMemory(
            device=device.name,
            model=device.model,
            weights=5 << 20,
            pool=device.num_frames * device.frame_bytes,
            private=used - (1 << 20),
            shared=1 << 20,
            ahead=0,
            cached=device.num_cached_frames * device.frame_bytes,
            moving=0,
            free=device.num_free_frames * device.frame_bytes,
            tenants=(TenantMemory("tester", used - (1 << 20), 1 << 20, 0, 0, 4 << 20),),
            processes=tuple(
                ProcessMemory(pid, "tester", 2 << 20, 1 << 20, 0, 4 << 20) for pid in sorted(self.processes)
            ),
            tiers=(TierMemory("host", 64 << 20, 4 << 20),),
        )

    def _describe_tenant(self, share: TenantShare) -> TenantInfo:
        limits = Limits(max_running=4, tokens_per_minute=1000.0)
        rates = Rates(tokens=Rate(1000.0, 750.0, 15.0))
        return TenantInfo(share.tenant, limits, rates, 0.5, share.num_running, 3, share)

    def _list_shares(self) -> tuple[TenantShare, ...]:
        num_prompt = sum(process.num_prompt_tokens for process in self.spawned)
        num_output = sum(len(process.output) for process in self.spawned)
        num_running = sum(process.state == "RUNNING" for process in self.processes.values())
        return (
            TenantShare(
                "tester", 2.0, num_prompt + 2.0 * num_output, num_prompt, num_output, 0.0,
                num_running, 0, 3 << 20,
            ),
        )  # fmt: skip

    def _count(self, exposition: str) -> StatisticsInfo:
        frames = [(d.num_frames, d.num_free_frames, d.num_cached_frames) for d in self.devices]
        total, free, cached = (sum(column) for column in zip(*frames, strict=True))
        num_output = sum(len(process.output) for process in self.spawned)
        return StatisticsInfo(
            version="9.9",
            uptime_seconds=100.0 + len(self.calls),
            draining=False,
            num_sessions=1,
            num_processes=len(self.processes),
            num_running=sum(process.state == "RUNNING" for process in self.processes.values()),
            num_waiting=0,
            num_spawned=len(self.spawned),
            num_exited=sum(process.is_zombie for process in self.spawned),
            num_preemptions=0,
            num_prompt_tokens=sum(process.num_prompt_tokens for process in self.spawned),
            num_cached_tokens=0,
            num_output_tokens=num_output,
            num_steps=num_output,
            num_frames=total,
            num_free_frames=free,
            num_cached_frames=cached,
            num_tasks=10,
            num_open_files=10,
            exposition=exposition,
        )


def make_model(path: Path, name: str = "scripted") -> Model:
    """Describe a model whose text files are in `path`."""
    return Model(
        name=name,
        path=str(path),
        max_model_len=CONTEXT,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(END,),
        dtype="float32",
        hash="ab" * 16,
        num_parameters=1_200_000,
        created=1_700_000_000,
        fingerprint="fp-scripted",
        embedding=EmbeddingInfo(VECTOR_SIZE, ("last", "mean"), (8,)),
    )


def make_device(name: str = "sim:0") -> DeviceInfo:
    """Describe a device with 100 frames: 60 used, 30 free, 10 cached."""
    return DeviceInfo(
        name=name,
        kind="sim",
        description="scripted",
        state="ready",
        model="scripted",
        dtype="float32",
        num_threads=1,
        frame_bytes=2 << 20,
        num_frames=100,
        num_free_frames=30,
        num_cached_frames=10,
        num_processes=0,
        num_running=0,
        num_waiting=0,
        num_steps=7,
        num_restarts=0,
        driver_pid=4242,
        cache=CacheInfo("cost", 2 << 20, 64, 20, 10, 8, 6, 1000, 250, 3, 7, 4),
        maps=MapInfo(40, 12, 5, 2, 1, 3, 6, 0.0125, 0.5),
    )


@asynccontextmanager
async def open_scripted_kernel(
    folder: Path,
    program: Program = say_hello,
    *,
    has_template: bool = True,
    keys: dict[str, str] | None = None,
) -> AsyncIterator[ScriptedKernel]:
    """Serve a scripted kernel at `folder / "llmos.sock"` for as long as the block runs."""
    model = make_model(write_model_folder(folder / "model", has_template=has_template))
    async with trio.open_nursery() as nursery:
        kernel = ScriptedKernel(program, [model], nursery)
        async with open_fake_kernel(FakeKernel(kernel.answer, keys=keys or {}), folder / "llmos.sock"):
            yield kernel
        nursery.cancel_scope.cancel()
