"""A kernel whose processes say what a test tells them to, behind the real protocol on a Unix socket.

Its process table, blocking reads, turns, stops and kills behave as the contract says. Only the model is a
script (`scripted_process.py`), and what it tells of itself is made up (`scripted_answers.py`). Tokens are
bytes (`byte_model.py`), so `say("text")` needs no model. Tests find the names of all of these here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import assert_never

import attrs
import msgspec
import trio

from syscalls.codec import Answer, Request
from syscalls.device import LoadModel, ModelLoaded, Sleep, UnloadModel, Wake
from syscalls.embedding import Embed
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
    DropCache,
    FrameMapList,
    Frames,
    Maps,
    Meminfo,
    MemoryInfo,
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
    Trace,
    Usage,
    Wait,
    Waited,
    Why,
    Write,
)
from syscalls.system import (
    DeviceInfo,
    DeviceList,
    Devices,
    Done,
    Event,
    EventList,
    Events,
    Model,
    ModelList,
    Models,
    Ping,
    Shutdown,
    Statistics,
)
from syscalls.tenant import (
    Identity,
    Rates,
    ReloadTenants,
    ShareList,
    Shares,
    TenantList,
    Tenants,
    TenantShare,
    TenantsReloaded,
    Whoami,
)  # fmt: skip
from tests.byte_model import (
    ASSISTANT,
    CHAT_TEMPLATE,
    CONTEXT,
    END,
    SYSTEM,
    USER,
    VECTOR_SIZE,
    VOCAB_SIZE,
    count_tokens,
    make_model,
    read_tokens,
    write_model_folder,
)
from tests.scripted_answers import (
    account_memory,
    count_all,
    count_running,
    count_share,
    describe_process,
    describe_tenant,
    explain_process,
    list_maps,
    make_device,
    tell_trace,
    tell_usage,
)
from tests.scripted_process import STOPPED_BY_MODEL, LimitReached, Program, ScriptedProcess, say_hello
from tests.syscalls.fake_kernel import FakeKernel, FakeSession, open_fake_kernel

__all__ = [
    "ASSISTANT", "CHAT_TEMPLATE", "CONTEXT", "END", "STOPPED_BY_MODEL", "SYSTEM", "USER", "VECTOR_SIZE",
    "VOCAB_SIZE", "Program", "ScriptedKernel", "ScriptedProcess", "count_tokens", "make_device",
    "make_model", "open_scripted_kernel", "read_tokens", "say_hello", "take_a_moment",
    "write_model_folder",
]  # fmt: skip


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
    )  # and the process of each
    events: list[Event] = attrs.field(factory=list)
    calls: list[Request] = attrs.field(factory=list)
    refusals: dict[type[Request], SyscallError] = attrs.field(factory=dict)  # calls that fail, and how
    embedding: Callable[[ScriptedProcess], Awaitable[None]] = take_a_moment  # before a vector is there
    unanswered: set[type[Request]] = attrs.field(factory=set)  # calls that are done, and never answered
    rates: Rates | None = None  # that spawns tell
    shutdown_grace: float | None = None  # once it was asked for
    _has_event: trio.Event = attrs.field(factory=trio.Event)
    _known_sessions: set[FakeSession] = attrs.field(factory=set)

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
                return Waited(pid, process.end, tell_usage(process))
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
                return tell_trace(since)
            case Why(pid):
                return explain_process(self._find(pid))
            case Meminfo():
                return MemoryInfo(tuple(account_memory(device, self.processes) for device in self.devices))
            case Maps(pid):
                self._find(pid)
                return list_maps(pid, self.devices[0].name)
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
                return TenantList((describe_tenant(self._count_share()),))
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
                return ShareList((self._count_share(),))
            case Devices():
                return DeviceList(tuple(self.devices))
            case Models():
                return ModelList(tuple(self.models), tuple(self.loading))
            case Events(since, limit, follow):
                while not (found := [event for event in self.events if event.sequence >= since]) and follow:
                    await self._has_event.wait()
                return EventList(tuple(found[-limit:]))
            case Statistics(exposition):
                return count_all(
                    self.devices, self.spawned, self.processes.values(), 100.0 + len(self.calls),
                    "llmos_processes 1\n" if exposition else "",
                )  # fmt: skip
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
        if session not in self._known_sessions:
            self._known_sessions.add(session)
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
            tell_usage(process) if process.end is not None else Usage(),
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

    def _describe(self, process: ScriptedProcess) -> ProcessInfo:
        return describe_process(process, self.models[0].name, self.devices[0].name)

    def _count_share(self) -> TenantShare:
        return count_share(self.spawned, count_running(self.processes.values()))


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
