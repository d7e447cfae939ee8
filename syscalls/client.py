"""The Trio client: many calls in flight over one socket.

    async with open_client() as client:
        spawned = await client.spawn(prompt, max_tokens=64, auto_reap=True)
        async for output in client.stream(spawned.pids[0]):
            print(output.tokens)

One task reads the socket and wakes the callers; another writes what has gathered since its last send, so
calls made in the same tick share one system call. A caller parks itself directly instead of waiting on an
event or a channel: that halves the price of a call.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar, Unpack

import outcome
import trio

from syscalls.codec import Answer, ErrorReply, Request, Welcome
from syscalls.embedding import Embed, Embedded
from syscalls.errno import Errno, SyscallError
from syscalls.feed import FEED_TOKENS, OutputFeed
from syscalls.image import (
    Checkpoint,
    Checkpointed,
    ImageInfo,
    ImageList,
    Images,
    RemoveImage,
    Restore,
)  # fmt: skip
from syscalls.memory import (
    CacheDropped,
    DeviceMemory,
    DropCache,
    FrameMap,
    FrameMapList,
    Frames,
    MapList,
    Maps,
    Meminfo,
    MemoryInfo,
)
from syscalls.paths import default_socket_path
from syscalls.process import (
    Cont,
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
    TraceList,
    Unfollow,
    Wait,
    Waited,
    Why,
    WhyInfo,
    Write,
)
from syscalls.session import ClientSession, ConnectionLost, EmbedOptions, SpawnOptions, explain_wrong_answer
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
    StatisticsInfo,
)
from syscalls.tenant import (
    Identity,
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

__all__ = [
    "Client",
    "ConnectionLost",
    "EventStream",
    "OutputFeed",
    "OutputStream",
    "attach_client",
    "open_client",
]

RECEIVE_BYTES = 256 << 10
MAX_UNSENT_BYTES = 1 << 20  # callers wait while more is queued: a kernel that does not read slows us

R = TypeVar("R", bound=Answer)


@asynccontextmanager
async def open_client(
    socket_path: str | os.PathLike[str] | None = None, name: str = "", key: str = ""
) -> AsyncIterator[Client]:
    """Connect to the kernel, and close the session at the end of the block.

    Processes that were spawned in the session and are not detached end with it.

    Args:
        socket_path: the kernel's Unix socket; None: `default_socket_path()`.
        name: shown in the kernel's log.
        key: of the tenant to act for; empty: whoever this process's user is to the kernel.

    Raises:
        ConnectionLost: no kernel answers there.
        SyscallError: the kernel refused the session; EPROTO when the ABI versions differ, EPERM when nobody
            has the key.
    """
    path = os.fspath(default_socket_path() if socket_path is None else socket_path)
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise ConnectionLost(f"no kernel answers at {path}: {error.strerror or error}") from error
    async with attach_client(stream, name, key) as client:
        yield client


@asynccontextmanager
async def attach_client(stream: trio.abc.Stream, name: str = "", key: str = "") -> AsyncIterator[Client]:
    """Open a session on a connected stream, which is closed at the end of the block.

    The nursery that holds the two tasks never sees the block's own exception: it would wrap it in a group,
    and `except SyscallError` around the block would not match.
    """
    failure: BaseException | None = None
    async with stream:
        client = Client(stream)
        await client._open(name, key)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client._run_reader)
                nursery.start_soon(client._run_writer)
                try:
                    yield client
                except BaseException as error:
                    failure = error
                finally:
                    client._fail("this client was closed")
                    nursery.cancel_scope.cancel()
        finally:
            if failure is not None:
                raise failure


class Client:
    """A session with the kernel. Any number of tasks may call at once; each call is a checkpoint.

    Every call raises SyscallError when the kernel refuses it (each struct's docstring says with which codes)
    and ConnectionLost when the session ends first. Timeouts are the caller's: cancel the call, and its reply
    is dropped when it comes. A cancelled spawn, fork or restore leaves nothing behind: what it created is
    killed.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._session = ClientSession()
        self._waiting: dict[int, trio.lowlevel.Task | OutputFeed] = {}  # callers, by the id of their call
        self._orphaned: set[int] = set()  # cancelled calls that create, which are not answered yet
        self._unsent = bytearray()
        self._writer: trio.lowlevel.Task | None = None  # set while the writer is parked: nothing to send
        self._has_room = trio.lowlevel.ParkingLot()  # callers held back by MAX_UNSENT_BYTES
        self._lost: str | None = None  # why the session is over

    @property
    def welcome(self) -> Welcome:
        """What the kernel said when it opened the session: its version, our tenant and rights."""
        assert self._session.welcome is not None
        return self._session.welcome

    @property
    def num_calls_in_flight(self) -> int:
        """Callers that wait for a reply."""
        return len(self._waiting)

    async def call(self, body: Request) -> Answer:
        """Make one call and wait for its answer, which is never an ErrorReply: that is raised.

        Not for `Follow`, which has many answers: see `open_feed`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while len(self._unsent) > MAX_UNSENT_BYTES and self._lost is None:
            await self._has_room.park()
        call_id = self._post(body)
        self._waiting[call_id] = trio.lowlevel.current_task()

        def abandon(_: object) -> trio.lowlevel.Abort:
            del self._waiting[call_id]
            if isinstance(body, Spawn | Embed | Fork | Restore):
                self._orphaned.add(call_id)
            return trio.lowlevel.Abort.SUCCEEDED

        answer: Answer = await trio.lowlevel.wait_task_rescheduled(abandon)
        if isinstance(answer, ErrorReply):
            raise SyscallError(answer.errno, answer.message, answer.exceeded)
        return answer

    @contextmanager
    def open_feed(self, pid: int, offset: int = 0, *, window: int = FEED_TOKENS) -> Iterator[OutputFeed]:
        """Have the kernel send a process's output from `offset` on as it comes. See `OutputFeed`, `Follow`.

        Args:
            pid: of the process.
            offset: of the first token.
            window: tokens that may be on their way, or wait here to be taken; at least 1.

        Raises ConnectionLost. What the kernel refuses is raised by the feed.
        """
        feed = OutputFeed(self._post, pid, offset, window)
        self._waiting[feed.call_id] = feed
        try:
            yield feed
        finally:
            self._close_feed(feed)

    def _close_feed(self, feed: OutputFeed) -> None:
        if self._waiting.pop(feed.call_id, None) is not None and self._lost is None:
            self._post(Unfollow(feed.call_id))

    async def _ask(self, body: Request, reply_type: type[R]) -> R:
        answer = await self.call(body)
        if not isinstance(answer, reply_type):
            raise SyscallError(Errno.EPROTO, explain_wrong_answer(body, answer))
        return answer

    # --- processes -----------------------------------------------------------------------------------------

    async def spawn(self, prompt: Iterable[int], **options: Unpack[SpawnOptions]) -> Spawned:
        """Create processes from a prompt of token ids. See `Spawn`."""
        return await self._ask(Spawn(tuple(prompt), **options), Spawned)

    async def fork(
        self,
        pid: int,
        count: int = 1,
        seeds: Iterable[int] = (),
        *,
        detached: bool = False,
        auto_reap: bool = False,
        label: str | None = None,
    ) -> Spawned:
        """Create children that continue from the parent's tokens so far. See `Fork`."""
        return await self._ask(Fork(pid, count, tuple(seeds), detached, auto_reap, label), Spawned)

    async def wait(self, pid: int) -> Waited:
        """Wait until a process has exited, and reap it. See `Wait`."""
        return await self._ask(Wait(pid), Waited)

    async def read(self, pid: int, offset: int = 0) -> Output:
        """Read output tokens from `offset` on; blocks until there are some. See `Read`."""
        return await self._ask(Read(pid, offset), Output)

    async def write(self, pid: int, tokens: Iterable[int], max_tokens: int | None = None) -> None:
        """Start the next turn of an interactive process. See `Write`."""
        await self._ask(Write(pid, tuple(tokens), max_tokens), Done)

    async def kill(self, pid: int) -> None:
        """End a process in any state. See `Kill`."""
        await self._ask(Kill(pid), Done)

    async def stop(self, pid: int) -> None:
        """Keep a process from running. See `Stop`."""
        await self._ask(Stop(pid), Done)

    async def cont(self, pid: int) -> None:
        """Let a stopped process go on. See `Cont`."""
        await self._ask(Cont(pid), Done)

    async def nice(self, pid: int, nice: int) -> None:
        """Set a process's nice level. See `Nice`."""
        await self._ask(Nice(pid, nice), Done)

    async def ps(self, *, everyone: bool = False, shared: bool = True) -> tuple[ProcessInfo, ...]:
        """List processes, ordered by pid. See `Ps`."""
        return (await self._ask(Ps(everyone, shared), ProcessList)).processes

    async def stat(self, pid: int) -> ProcessInfo:
        """Describe one process. See `Stat`."""
        return await self._ask(Stat(pid), ProcessInfo)

    async def why(self, pid: int) -> WhyInfo:
        """Tell what happened to a process and where its time went. See `Why`."""
        return await self._ask(Why(pid), WhyInfo)

    async def trace(self, pid: int, since: int = 0, limit: int = 1000, *, follow: bool = False) -> TraceList:
        """Read what happens to a process. See `Trace`."""
        return await self._ask(Trace(pid, since, limit, follow), TraceList)

    def stream(self, pid: int, offset: int = 0) -> OutputStream:
        """Iterate over a process's output from `offset` to the end of its turn."""
        return OutputStream(self, pid, offset)

    async def embed(self, inputs: Iterable[Iterable[int]], **options: Unpack[EmbedOptions]) -> Embedded:
        """Make a vector of each input of token ids, and wait for all. See `Embed`.

        When it is cancelled, or a read fails, the processes that are left are killed.
        """
        body = Embed(tuple(map(tuple, inputs)), auto_reap=True, **options)
        spawned = await self._ask(body, Spawned)
        outputs: list[Output] = []
        try:
            for pid in spawned.pids:
                outputs.append(await self.read(pid))
        except BaseException:
            left = spawned.pids[len(outputs) :]
            if self._lost is None:
                self._bury(Spawned(left, spawned.seeds))
            raise
        return Embedded(spawned.pids, outputs, spawned.rates)

    # --- images --------------------------------------------------------------------------------------------

    async def checkpoint(self, pid: int, name: str, *, overwrite: bool = False) -> Checkpointed:
        """Save a process as an image, and wait until it is on the disk. See `Checkpoint`."""
        return await self._ask(Checkpoint(pid, name, overwrite), Checkpointed)

    async def restore(
        self,
        name: str,
        *,
        detached: bool = False,
        auto_reap: bool = False,
        label: str | None = None,
        tenant: str | None = None,
    ) -> Spawned:
        """Create a process from an image. See `Restore`."""
        return await self._ask(Restore(name, detached, auto_reap, label, tenant), Spawned)

    async def images(self, tenant: str | None = None) -> tuple[ImageInfo, ...]:
        """List images, ordered by name. See `Images`."""
        return (await self._ask(Images(tenant), ImageList)).images

    async def remove_image(self, name: str, tenant: str | None = None) -> None:
        """Delete an image. See `RemoveImage`."""
        await self._ask(RemoveImage(name, tenant), Done)

    # --- memory --------------------------------------------------------------------------------------------

    async def meminfo(self) -> tuple[DeviceMemory, ...]:
        """Account for the memory of every device. See `Meminfo`."""
        return (await self._ask(Meminfo(), MemoryInfo)).devices

    async def maps(self, pid: int) -> MapList:
        """Describe the address space of a process. See `Maps`."""
        return await self._ask(Maps(pid), MapList)

    async def frames(self) -> tuple[FrameMap, ...]:
        """Draw what the frames of each device are for. See `Frames`."""
        return (await self._ask(Frames(), FrameMapList)).devices

    async def drop_cache(self) -> CacheDropped:
        """Give up the pages of the prefix cache that nobody uses. See `DropCache`."""
        return await self._ask(DropCache(), CacheDropped)

    # --- tenants -------------------------------------------------------------------------------------------

    async def shares(self, *, memory: bool = True) -> tuple[TenantShare, ...]:
        """Read what tenants were served and have now. See `Shares`."""
        return (await self._ask(Shares(memory), ShareList)).shares

    # --- devices and the system ----------------------------------------------------------------------------

    async def devices(self) -> tuple[DeviceInfo, ...]:
        """List the devices. See `Devices`."""
        return (await self._ask(Devices(), DeviceList)).devices

    async def models(self) -> tuple[Model, ...]:
        """List the served models, the default first. See `Models`."""
        return (await self._ask(Models(), ModelList)).models

    async def events(self, since: int = 0, limit: int = 1000, *, follow: bool = False) -> tuple[Event, ...]:
        """Read the kernel's event ring. See `Events`."""
        return (await self._ask(Events(since, limit, follow), EventList)).events

    def follow_events(self, since: int = 0) -> EventStream:
        """Iterate over batches of kernel events for ever, from sequence number `since` on."""
        return EventStream(self, since)

    async def statistics(self, *, exposition: bool = False) -> StatisticsInfo:
        """Read the kernel's counters. See `Statistics`."""
        return await self._ask(Statistics(exposition), StatisticsInfo)

    async def shutdown(self, grace_seconds: float = 30.0) -> None:
        """Drain and stop the kernel. See `Shutdown`."""
        await self._ask(Shutdown(grace_seconds), Done)

    async def ping(self) -> None:
        """Make a round trip. See `Ping`."""
        await self._ask(Ping(), Done)

    # --- tenants -------------------------------------------------------------------------------------------

    async def whoami(self) -> Identity:
        """Ask whom this session acts for. See `Whoami`."""
        return await self._ask(Whoami(), Identity)

    async def tenants(self, *, everyone: bool = False) -> tuple[TenantInfo, ...]:
        """Describe tenants: their limits, and what they use. See `Tenants`."""
        return (await self._ask(Tenants(everyone), TenantList)).tenants

    async def reload_tenants(self) -> TenantsReloaded:
        """Have the tenants file read again. See `ReloadTenants`."""
        return await self._ask(ReloadTenants(), TenantsReloaded)

    # --- the two tasks -------------------------------------------------------------------------------------

    async def _open(self, name: str, key: str) -> None:
        try:
            await self._stream.send_all(self._session.encode_hello(name, key))
            while self._session.welcome is None:
                self._session.receive(await self._stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise ConnectionLost("the kernel closed the connection during the handshake") from error

    def _post(self, body: Request) -> int:
        """Queue one call for the writer. Raises ConnectionLost when the session is over."""
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        call_id, frame = self._session.encode_call(body)
        self._unsent += frame
        if self._writer is not None:
            trio.lowlevel.reschedule(self._writer)
            self._writer = None
        return call_id

    async def _run_writer(self) -> None:
        try:
            while True:
                if not self._unsent:
                    self._writer = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._stop_writer)
                data, self._unsent = self._unsent, bytearray()
                self._has_room.unpark_all()
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader meets the same end, and may still find the kernel's reason before it

    def _stop_writer(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _run_reader(self) -> None:
        try:
            while True:
                for call_id, answer in self._session.receive(await self._stream.receive_some(RECEIVE_BYTES)):
                    caller = self._waiting.get(call_id)
                    if isinstance(caller, OutputFeed):
                        if caller.receive(answer):
                            del self._waiting[call_id]
                    elif caller is not None:
                        del self._waiting[call_id]
                        trio.lowlevel.reschedule(caller, outcome.Value(answer))
                    elif call_id in self._orphaned:
                        self._orphaned.remove(call_id)
                        self._bury(answer)
        except ConnectionLost as error:
            self._fail(str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._fail(f"the connection to the kernel broke: {error.__cause__ or error}")

    def _bury(self, answer: Answer) -> None:
        """Kill and reap what a cancelled spawn created; nobody waits for these replies."""
        if isinstance(answer, Spawned):
            for pid in answer.pids:
                self._post(Kill(pid))
                self._post(Wait(pid))

    def _fail(self, reason: str) -> None:
        """End the session: every caller, waiting or to come, gets ConnectionLost."""
        if self._lost is not None:
            return
        self._lost = reason
        waiting, self._waiting = self._waiting, {}
        for caller in waiting.values():
            if isinstance(caller, OutputFeed):
                caller.lose(ConnectionLost(reason))
            else:
                trio.lowlevel.reschedule(caller, outcome.Error(ConnectionLost(reason)))
        self._has_room.unpark_all()


class OutputStream:
    """A process's output, one `Output` for each read; ends after the one whose `end` is set.

    Leaving the loop early costs nothing: reads do not consume. `offset` is where the next read starts, so
    the next turn of an interactive process is `client.stream(pid, stream.offset)`.
    """

    def __init__(self, client: Client, pid: int, offset: int) -> None:
        self.offset = offset
        self._client = client
        self._pid = pid
        self._ended = False

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> Output:
        if self._ended:
            raise StopAsyncIteration
        output = await self._client.read(self._pid, self.offset)
        self.offset = output.offset + len(output.tokens)
        self._ended = output.end is not None
        return output


class EventStream:
    """The kernel's events in batches, oldest first; waits for new ones, and never ends by itself."""

    def __init__(self, client: Client, since: int) -> None:
        self.since = since
        self._client = client

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        events = await self._client.events(self.since, follow=True)
        if events:
            self.since = events[-1].sequence + 1
        return events
