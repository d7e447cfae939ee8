"""The shell's session with the kernel: opened when first needed, and again after it was lost."""

from __future__ import annotations

from pathlib import Path

import trio

from shell.llmsh.errors import NoKernel
from syscalls.client import Client, ConnectionLost, open_client
from syscalls.errno import SyscallError


class Connection:
    """Holds one session open in a task of the shell's nursery, so that processes outlive a single command."""

    def __init__(self, socket_path: Path, nursery: trio.Nursery) -> None:
        self.socket_path = socket_path
        self._nursery = nursery
        self._client: Client | None = None
        self._release = trio.Event()
        self._opening = trio.Lock()  # the commands of a pipe ask at the same time

    async def client(self) -> Client:
        """Return a session that works now: the kernel answered a ping on it, or it is new.

        Raises:
            NoKernel: nothing answers at the socket, or what answers refuses the session.
        """
        async with self._opening:
            return await self._find_client()

    async def _find_client(self) -> Client:
        if self._client is not None:
            try:
                await self._client.ping()
            except ConnectionLost:
                self.drop()
            else:
                return self._client
        opened = await self._nursery.start(self._hold)
        if isinstance(opened, Client):
            self._client = opened
            return opened
        if isinstance(opened, SyscallError):
            raise NoKernel(f"the kernel at {self.socket_path} refused the session: {opened}") from opened
        raise NoKernel(f"{opened}; start one with 'llmos up', or name its socket with --socket") from opened

    def drop(self) -> None:
        """Forget the session; the next command opens another."""
        self._client = None
        self._release.set()

    async def _hold(self, *, task_status: trio.TaskStatus[Client | Exception]) -> None:
        self._release = release = trio.Event()
        started = False
        try:
            async with open_client(self.socket_path, name="llmsh") as client:
                started = True
                task_status.started(client)
                await release.wait()
        except (ConnectionLost, SyscallError) as error:
            if not started:
                task_status.started(error)
