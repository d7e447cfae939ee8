"""The Trio client: many calls in flight over one socket.

    async with open_client() as client:
        spawned = await client.spawn(prompt, max_tokens=64, auto_reap=True)
        async for output in client.stream(spawned.pids[0]):
            print(output.tokens)

A method for each call, and what goes with it; the two tasks behind them are `Connection`'s.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TypeVar, Unpack

import trio

from syscalls import device, embedding, image, memory, process, system, tenant
from syscalls.codec import Answer, Request, Welcome
from syscalls.connection import Connection, open_connection
from syscalls.errno import Errno, SyscallError
from syscalls.feed import FEED_TOKENS, OutputFeed
from syscalls.paths import default_socket_path
from syscalls.session import ConnectionLost, EmbedOptions, SpawnOptions, explain_wrong_answer
from syscalls.streams import EventStream, OutputStream

__all__ = [
    "Client",
    "ConnectionLost",
    "EventStream",
    "OutputFeed",
    "OutputStream",
    "open_client",
]

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
    async with open_connection(stream, name, key) as connection:
        yield Client(connection)


class Client:
    """A session with the kernel. Any number of tasks may call at once; each call is a checkpoint.

    Every call raises SyscallError when the kernel refuses it (each struct's docstring says with which codes)
    and ConnectionLost when the session ends first. Timeouts are the caller's: cancel the call, and its reply
    is dropped when it comes. A cancelled spawn, fork or restore leaves nothing behind: what it created is
    killed. Where that was to be detached, closing the client waits for it, two seconds at most.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def welcome(self) -> Welcome:
        """What the kernel said when it opened the session: its version, our tenant and rights."""
        return self._connection.welcome

    @property
    def num_calls_in_flight(self) -> int:
        """Callers that wait for a reply."""
        return self._connection.num_calls_in_flight

    async def call(self, body: Request) -> Answer:
        """Make one call and wait for its answer, which is never an ErrorReply: that is raised.

        Not for `Follow`, which has many answers: see `open_feed`.
        """
        return await self._connection.call(body)

    @contextmanager
    def open_feed(self, pid: int, offset: int = 0, *, window: int = FEED_TOKENS) -> Iterator[OutputFeed]:
        """Have the kernel send a process's output from `offset` on as it comes. See `OutputFeed`, `Follow`.

        Args:
            pid: of the process.
            offset: of the first token.
            window: tokens that may be on their way, or wait here to be taken; at least 1.

        Raises ConnectionLost. What the kernel refuses is raised by the feed.
        """
        feed = self._connection.start_feed(pid, offset, window)
        try:
            yield feed
        finally:
            self._connection.stop_feed(feed)

    async def _ask(self, body: Request, reply_type: type[R]) -> R:
        answer = await self.call(body)
        if not isinstance(answer, reply_type):
            raise SyscallError(Errno.EPROTO, explain_wrong_answer(body, answer))
        return answer

    # --- processes -----------------------------------------------------------------------------------------

    async def spawn(self, prompt: Iterable[int], **options: Unpack[SpawnOptions]) -> process.Spawned:
        """Create processes from a prompt of token ids. See `Spawn`."""
        return await self._ask(process.Spawn(tuple(prompt), **options), process.Spawned)

    async def fork(
        self,
        pid: int,
        count: int = 1,
        seeds: Iterable[int] = (),
        *,
        detached: bool = False,
        auto_reap: bool = False,
        label: str | None = None,
    ) -> process.Spawned:
        """Create children that continue from the parent's tokens so far. See `Fork`."""
        return await self._ask(
            process.Fork(pid, count, tuple(seeds), detached, auto_reap, label), process.Spawned
        )

    async def wait(self, pid: int) -> process.Waited:
        """Wait until a process has exited, and reap it. See `Wait`."""
        return await self._ask(process.Wait(pid), process.Waited)

    async def read(self, pid: int, offset: int = 0) -> process.Output:
        """Read output tokens from `offset` on; blocks until there are some. See `Read`."""
        return await self._ask(process.Read(pid, offset), process.Output)

    async def write(self, pid: int, tokens: Iterable[int], max_tokens: int | None = None) -> None:
        """Start the next turn of an interactive process. See `Write`."""
        await self._ask(process.Write(pid, tuple(tokens), max_tokens), system.Done)

    async def kill(self, pid: int) -> None:
        """End a process in any state. See `Kill`."""
        await self._ask(process.Kill(pid), system.Done)

    async def stop(self, pid: int) -> None:
        """Keep a process from running. See `Stop`."""
        await self._ask(process.Stop(pid), system.Done)

    async def cont(self, pid: int) -> None:
        """Let a stopped process go on. See `Cont`."""
        await self._ask(process.Cont(pid), system.Done)

    async def nice(self, pid: int, nice: int) -> None:
        """Set a process's nice level. See `Nice`."""
        await self._ask(process.Nice(pid, nice), system.Done)

    async def ps(self, *, everyone: bool = False, shared: bool = True) -> tuple[process.ProcessInfo, ...]:
        """List processes, ordered by pid. See `Ps`."""
        return (await self._ask(process.Ps(everyone, shared), process.ProcessList)).processes

    async def stat(self, pid: int) -> process.ProcessInfo:
        """Describe one process. See `Stat`."""
        return await self._ask(process.Stat(pid), process.ProcessInfo)

    async def why(self, pid: int) -> process.WhyInfo:
        """Tell what happened to a process and where its time went. See `Why`."""
        return await self._ask(process.Why(pid), process.WhyInfo)

    async def trace(
        self, pid: int, since: int = 0, limit: int = 1000, *, follow: bool = False
    ) -> process.TraceList:
        """Read what happens to a process. See `Trace`."""
        return await self._ask(process.Trace(pid, since, limit, follow), process.TraceList)

    def stream(self, pid: int, offset: int = 0) -> OutputStream:
        """Iterate over a process's output from `offset` to the end of its turn."""
        return OutputStream(self.read, pid, offset)

    async def embed(
        self, inputs: Iterable[Iterable[int]], **options: Unpack[EmbedOptions]
    ) -> embedding.Embedded:
        """Make a vector of each input of token ids, and wait for all. See `Embed`.

        When it is cancelled, or a read fails, the processes that are left are killed.
        """
        body = embedding.Embed(tuple(map(tuple, inputs)), auto_reap=True, **options)
        spawned = await self._ask(body, process.Spawned)
        outputs: list[process.Output] = []
        try:
            for pid in spawned.pids:
                outputs.append(await self.read(pid))
        except BaseException:
            self._connection.bury(spawned.pids[len(outputs) :])
            raise
        return embedding.Embedded(spawned.pids, outputs, spawned.rates)

    # --- images --------------------------------------------------------------------------------------------

    async def checkpoint(self, pid: int, name: str, *, overwrite: bool = False) -> image.Checkpointed:
        """Save a process as an image, and wait until it is on the disk. See `Checkpoint`."""
        return await self._ask(image.Checkpoint(pid, name, overwrite), image.Checkpointed)

    async def restore(
        self,
        name: str,
        *,
        detached: bool = False,
        auto_reap: bool = False,
        label: str | None = None,
        tenant: str | None = None,
    ) -> process.Spawned:
        """Create a process from an image. See `Restore`."""
        return await self._ask(image.Restore(name, detached, auto_reap, label, tenant), process.Spawned)

    async def images(self, tenant: str | None = None) -> tuple[image.ImageInfo, ...]:
        """List images, ordered by name. See `Images`."""
        return (await self._ask(image.Images(tenant), image.ImageList)).images

    async def remove_image(self, name: str, tenant: str | None = None) -> None:
        """Delete an image. See `RemoveImage`."""
        await self._ask(image.RemoveImage(name, tenant), system.Done)

    # --- memory --------------------------------------------------------------------------------------------

    async def meminfo(self) -> tuple[memory.DeviceMemory, ...]:
        """Account for the memory of every device. See `Meminfo`."""
        return (await self._ask(memory.Meminfo(), memory.MemoryInfo)).devices

    async def maps(self, pid: int) -> memory.MapList:
        """Describe the address space of a process. See `Maps`."""
        return await self._ask(memory.Maps(pid), memory.MapList)

    async def frames(self) -> tuple[memory.FrameMap, ...]:
        """Draw what the frames of each device are for. See `Frames`."""
        return (await self._ask(memory.Frames(), memory.FrameMapList)).devices

    async def drop_cache(self) -> memory.CacheDropped:
        """Give up the pages of the prefix cache that nobody uses. See `DropCache`."""
        return await self._ask(memory.DropCache(), memory.CacheDropped)

    # --- devices and the system ----------------------------------------------------------------------------

    async def devices(self) -> tuple[system.DeviceInfo, ...]:
        """List the devices. See `Devices`."""
        return (await self._ask(system.Devices(), system.DeviceList)).devices

    async def models(self) -> tuple[system.Model, ...]:
        """List the served models, the default first. See `Models`."""
        return (await self.list_models()).models

    async def list_models(self) -> system.ModelList:
        """List the served models, and the names of those that are being loaded. See `Models`."""
        return await self._ask(system.Models(), system.ModelList)

    async def events(
        self, since: int = 0, limit: int = 1000, *, follow: bool = False
    ) -> tuple[system.Event, ...]:
        """Read the kernel's event ring. See `Events`."""
        return (await self._ask(system.Events(since, limit, follow), system.EventList)).events

    def follow_events(self, since: int = 0) -> EventStream:
        """Iterate over batches of kernel events for ever, from sequence number `since` on."""
        return EventStream(partial(self.events, follow=True), since)

    async def statistics(self, *, exposition: bool = False) -> system.StatisticsInfo:
        """Read the kernel's counters. See `Statistics`."""
        return await self._ask(system.Statistics(exposition), system.StatisticsInfo)

    async def sleep(self, level: int = 1) -> None:
        """Have all devices rest; returns when they do. See `Sleep`."""
        await self._ask(device.Sleep(level), system.Done)

    async def wake(self) -> None:
        """Have all devices go on; returns when they serve. See `Wake`."""
        await self._ask(device.Wake(), system.Done)

    async def load_model(self, model: str, name: str | None = None) -> device.ModelLoaded:
        """Load a model beside the others. See `LoadModel`."""
        return await self._ask(device.LoadModel(model, name), device.ModelLoaded)

    async def unload_model(self, model: str, *, force: bool = False) -> None:
        """Give up a model, when nobody uses it any more. See `UnloadModel`."""
        await self._ask(device.UnloadModel(model, force), system.Done)

    async def shutdown(self, grace_seconds: float = 30.0) -> None:
        """Drain and stop the kernel. See `Shutdown`."""
        await self._ask(system.Shutdown(grace_seconds), system.Done)

    async def ping(self) -> None:
        """Make a round trip. See `Ping`."""
        await self._ask(system.Ping(), system.Done)

    # --- tenants -------------------------------------------------------------------------------------------

    async def whoami(self) -> tenant.Identity:
        """Ask whom this session acts for. See `Whoami`."""
        return await self._ask(tenant.Whoami(), tenant.Identity)

    async def tenants(self, *, everyone: bool = False) -> tuple[tenant.TenantInfo, ...]:
        """Describe tenants: their limits, and what they use. See `Tenants`."""
        return (await self._ask(tenant.Tenants(everyone), tenant.TenantList)).tenants

    async def reload_tenants(self) -> tenant.TenantsReloaded:
        """Have the tenants file read again. See `ReloadTenants`."""
        return await self._ask(tenant.ReloadTenants(), tenant.TenantsReloaded)

    async def shares(self, *, memory: bool = True) -> tuple[tenant.TenantShare, ...]:
        """Read what tenants were served and have now. See `Shares`."""
        return (await self._ask(tenant.Shares(memory), tenant.ShareList)).shares
