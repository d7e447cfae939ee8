"""The client for plain synchronous code: no event loop, one call at a time.

with SyncClient() as client:
    spawned = client.spawn(prompt, max_tokens=64, auto_reap=True)
    for output in client.stream(spawned.pids[0]):
        print(output.tokens)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import Self, TypeVar, Unpack

from syscalls import device, embedding, image, memory, process, system, tenant
from syscalls.codec import Answer, Request, Welcome
from syscalls.errno import Errno, SyscallError
from syscalls.paths import default_socket_path
from syscalls.session import ConnectionLost, EmbedOptions, SpawnOptions, explain_wrong_answer
from syscalls.sync_connection import SyncConnection
from syscalls.sync_streams import SyncEventStream, SyncOutputStream

__all__ = ["ConnectionLost", "SyncClient", "SyncEventStream", "SyncOutputStream"]

R = TypeVar("R", bound=Answer)


class SyncClient:
    """A session with the kernel over a blocking socket, closed at the end of the `with` block.

    Processes that were spawned in the session and are not detached end with it. Not for sharing between
    threads: each opens its own. Every call raises SyscallError when the kernel refuses it (each struct's
    docstring says with which codes) and ConnectionLost when the session ends first. A call that is
    interrupted (Ctrl-C) while it waits leaves the session usable: its reply is dropped when it comes. What an
    interrupted spawn, fork or restore created is killed with the next call, or when the client is closed.

    Args:
        socket_path: the kernel's Unix socket; None: `default_socket_path()`.
        name: shown in the kernel's log.
        key: of the tenant to act for; empty: whoever this process's user is to the kernel.

    Raises:
        ConnectionLost: no kernel answers there.
        SyscallError: the kernel refused the session; EPROTO when the ABI versions differ, EPERM when nobody
            has the key.
    """

    def __init__(
        self, socket_path: str | os.PathLike[str] | None = None, name: str = "", key: str = ""
    ) -> None:
        path = os.fspath(default_socket_path() if socket_path is None else socket_path)
        self._connection = SyncConnection(path, name, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session. Idempotent.

        It blocks only where a call was interrupted that creates: until it is answered, or the kernel has said
        nothing for a second.
        """
        self._connection.close()

    @property
    def welcome(self) -> Welcome:
        """What the kernel said when it opened the session: its version, our tenant and rights."""
        return self._connection.welcome

    def call(self, body: Request) -> Answer:
        """Make one call and wait for its answer, which is never an ErrorReply: that is raised.

        Not for `Follow`, which has many answers.
        """
        return self._connection.call(body)

    def _ask(self, body: Request, reply_type: type[R]) -> R:
        answer = self.call(body)
        if not isinstance(answer, reply_type):
            raise SyscallError(Errno.EPROTO, explain_wrong_answer(body, answer))
        return answer

    # --- processes -----------------------------------------------------------------------------------------

    def spawn(self, prompt: Iterable[int], **options: Unpack[SpawnOptions]) -> process.Spawned:
        """Create processes from a prompt of token ids. See `Spawn`."""
        return self._ask(process.Spawn(tuple(prompt), **options), process.Spawned)

    def fork(
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
        body = process.Fork(pid, count, tuple(seeds), detached, auto_reap, label)
        return self._ask(body, process.Spawned)

    def embed(self, inputs: Iterable[Iterable[int]], **options: Unpack[EmbedOptions]) -> embedding.Embedded:
        """Make a vector of each input of token ids, and wait for all. See `Embed`.

        When it is interrupted, or a read fails, the processes that are left are killed.
        """
        body = embedding.Embed(tuple(map(tuple, inputs)), auto_reap=True, **options)
        spawned = self._ask(body, process.Spawned)
        outputs: list[process.Output] = []
        try:
            for pid in spawned.pids:
                outputs.append(self.read(pid))
        except BaseException:
            self._connection.bury(spawned.pids[len(outputs) :])
            raise
        return embedding.Embedded(spawned.pids, outputs, spawned.rates)

    def wait(self, pid: int) -> process.Waited:
        """Wait until a process has exited, and reap it. See `Wait`."""
        return self._ask(process.Wait(pid), process.Waited)

    def read(self, pid: int, offset: int = 0) -> process.Output:
        """Read output tokens from `offset` on; blocks until there are some. See `Read`."""
        return self._ask(process.Read(pid, offset), process.Output)

    def write(self, pid: int, tokens: Iterable[int], max_tokens: int | None = None) -> None:
        """Start the next turn of an interactive process. See `Write`."""
        self._ask(process.Write(pid, tuple(tokens), max_tokens), system.Done)

    def kill(self, pid: int) -> None:
        """End a process in any state. See `Kill`."""
        self._ask(process.Kill(pid), system.Done)

    def stop(self, pid: int) -> None:
        """Keep a process from running. See `Stop`."""
        self._ask(process.Stop(pid), system.Done)

    def cont(self, pid: int) -> None:
        """Let a stopped process go on. See `Cont`."""
        self._ask(process.Cont(pid), system.Done)

    def nice(self, pid: int, nice: int) -> None:
        """Set a process's nice level. See `Nice`."""
        self._ask(process.Nice(pid, nice), system.Done)

    def ps(self, *, everyone: bool = False, shared: bool = True) -> tuple[process.ProcessInfo, ...]:
        """List processes, ordered by pid. See `Ps`."""
        return self._ask(process.Ps(everyone, shared), process.ProcessList).processes

    def stat(self, pid: int) -> process.ProcessInfo:
        """Describe one process. See `Stat`."""
        return self._ask(process.Stat(pid), process.ProcessInfo)

    def why(self, pid: int) -> process.WhyInfo:
        """Tell what happened to a process and where its time went. See `Why`."""
        return self._ask(process.Why(pid), process.WhyInfo)

    def trace(
        self, pid: int, since: int = 0, limit: int = 1000, *, follow: bool = False
    ) -> process.TraceList:
        """Read what happens to a process. See `Trace`."""
        return self._ask(process.Trace(pid, since, limit, follow), process.TraceList)

    def stream(self, pid: int, offset: int = 0) -> SyncOutputStream:
        """Iterate over a process's output from `offset` to the end of its turn."""
        return SyncOutputStream(self.read, pid, offset)

    # --- images --------------------------------------------------------------------------------------------

    def checkpoint(self, pid: int, name: str, *, overwrite: bool = False) -> image.Checkpointed:
        """Save a process as an image, and wait until it is on the disk. See `Checkpoint`."""
        return self._ask(image.Checkpoint(pid, name, overwrite), image.Checkpointed)

    def restore(
        self,
        name: str,
        *,
        detached: bool = False,
        auto_reap: bool = False,
        label: str | None = None,
        tenant: str | None = None,
    ) -> process.Spawned:
        """Create a process from an image. See `Restore`."""
        return self._ask(image.Restore(name, detached, auto_reap, label, tenant), process.Spawned)

    def images(self, tenant: str | None = None) -> tuple[image.ImageInfo, ...]:
        """List images, ordered by name. See `Images`."""
        return self._ask(image.Images(tenant), image.ImageList).images

    def remove_image(self, name: str, tenant: str | None = None) -> None:
        """Delete an image. See `RemoveImage`."""
        self._ask(image.RemoveImage(name, tenant), system.Done)

    # --- memory --------------------------------------------------------------------------------------------

    def meminfo(self) -> tuple[memory.DeviceMemory, ...]:
        """Account for the memory of every device. See `Meminfo`."""
        return self._ask(memory.Meminfo(), memory.MemoryInfo).devices

    def maps(self, pid: int) -> memory.MapList:
        """Describe the address space of a process. See `Maps`."""
        return self._ask(memory.Maps(pid), memory.MapList)

    def frames(self) -> tuple[memory.FrameMap, ...]:
        """Draw what the frames of each device are for. See `Frames`."""
        return self._ask(memory.Frames(), memory.FrameMapList).devices

    def drop_cache(self) -> memory.CacheDropped:
        """Give up the pages of the prefix cache that nobody uses. See `DropCache`."""
        return self._ask(memory.DropCache(), memory.CacheDropped)

    # --- devices and the system ----------------------------------------------------------------------------

    def devices(self) -> tuple[system.DeviceInfo, ...]:
        """List the devices. See `Devices`."""
        return self._ask(system.Devices(), system.DeviceList).devices

    def models(self) -> tuple[system.Model, ...]:
        """List the served models, the default first. See `Models`."""
        return self.list_models().models

    def list_models(self) -> system.ModelList:
        """List the served models, and the names of those that are being loaded. See `Models`."""
        return self._ask(system.Models(), system.ModelList)

    def events(self, since: int = 0, limit: int = 1000, *, follow: bool = False) -> tuple[system.Event, ...]:
        """Read the kernel's event ring. See `Events`."""
        return self._ask(system.Events(since, limit, follow), system.EventList).events

    def follow_events(self, since: int = 0) -> SyncEventStream:
        """Iterate over batches of kernel events for ever, from sequence number `since` on."""
        return SyncEventStream(partial(self.events, follow=True), since)

    def statistics(self, *, exposition: bool = False) -> system.StatisticsInfo:
        """Read the kernel's counters. See `Statistics`."""
        return self._ask(system.Statistics(exposition), system.StatisticsInfo)

    def sleep(self, level: int = 1) -> None:
        """Have all devices rest; returns when they do. See `Sleep`."""
        self._ask(device.Sleep(level), system.Done)

    def wake(self) -> None:
        """Have all devices go on; returns when they serve. See `Wake`."""
        self._ask(device.Wake(), system.Done)

    def load_model(self, model: str, name: str | None = None) -> device.ModelLoaded:
        """Load a model beside the others. See `LoadModel`."""
        return self._ask(device.LoadModel(model, name), device.ModelLoaded)

    def unload_model(self, model: str, *, force: bool = False) -> None:
        """Give up a model, when nobody uses it any more. See `UnloadModel`."""
        self._ask(device.UnloadModel(model, force), system.Done)

    def shutdown(self, grace_seconds: float = 30.0) -> None:
        """Drain and stop the kernel. See `Shutdown`."""
        self._ask(system.Shutdown(grace_seconds), system.Done)

    def ping(self) -> None:
        """Make a round trip. See `Ping`."""
        self._ask(system.Ping(), system.Done)

    # --- tenants -------------------------------------------------------------------------------------------

    def whoami(self) -> tenant.Identity:
        """Ask whom this session acts for. See `Whoami`."""
        return self._ask(tenant.Whoami(), tenant.Identity)

    def tenants(self, *, everyone: bool = False) -> tuple[tenant.TenantInfo, ...]:
        """Describe tenants: their limits, and what they use. See `Tenants`."""
        return self._ask(tenant.Tenants(everyone), tenant.TenantList).tenants

    def reload_tenants(self) -> tenant.TenantsReloaded:
        """Have the tenants file read again. See `ReloadTenants`."""
        return self._ask(tenant.ReloadTenants(), tenant.TenantsReloaded)

    def shares(self, *, memory: bool = True) -> tuple[tenant.TenantShare, ...]:
        """Read what tenants were served and have now. See `Shares`."""
        return self._ask(tenant.Shares(memory), tenant.ShareList).shares
