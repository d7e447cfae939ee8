"""The tenants' sessions with the kernel: one for each key that is in use.

A request's key is not checked here. It opens a session with the kernel, which knows whose it is, and all that
the request does goes through that session: the kernel, not the gateway, sees to it that a tenant reads and
kills only what is its own.
"""

from __future__ import annotations

import hashlib

import attrs
import trio

from shell.gateway.errors import invalid_api_key
from shell.gateway.exchange import Exchange
from shell.gateway.kernel_link import NEVER, KernelLink
from syscalls.client import Client, ConnectionLost, open_client
from syscalls.errno import Errno, SyscallError

BEARER = "bearer "


def read_key(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the key of a request, from `Authorization: Bearer`, `api-key` or `x-api-key`; "" without one."""
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == b"authorization" and text.lower().startswith(BEARER):
            return text[len(BEARER) :].strip()
        if name in (b"api-key", b"x-api-key"):
            return text
    return ""


@attrs.define(eq=False)
class Sessions:
    """Opens a session when a key is first seen, and keeps it until the kernel ends it."""

    link: KernelLink
    is_open_door: bool = False  # strangers reach us: nobody is served without a key
    _clients: dict[bytes, Client] = attrs.field(factory=dict)  # by hash of the key
    _opening: trio.Lock = attrs.field(factory=trio.Lock)
    _nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the sessions, for ever."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def identify(self, exchange: Exchange, headers: list[tuple[bytes, bytes]]) -> None:
        """Give a request the session of its tenant; without keys all requests share the gateway's own.

        Raises:
            ApiError: 401 without a key, or with one that nobody has, or when strangers reach the port and
                the kernel has no keys.
            ConnectionLost: no kernel answers.
        """
        if not self.link.needs_key:
            if self.is_open_door and self.link.is_connected:
                raise invalid_api_key(
                    "This server is reachable from other machines and has no API keys, so it serves nobody. "
                    "Give its kernel a tenants file with keys, or start it with --insecure-no-keys."
                )
            return
        key = read_key(headers)
        if not key:
            raise invalid_api_key("You did not provide an API key: send it as 'Authorization: Bearer KEY'.")
        exchange.client = await self._client_of(key)
        exchange.noted["tenant"] = exchange.client.welcome.tenant

    async def _client_of(self, key: str) -> Client:
        digest = hashlib.sha256(key.encode()).digest()
        if (client := self._clients.get(digest)) is not None:
            return client
        async with self._opening:
            if (client := self._clients.get(digest)) is not None:
                return client
            assert self._nursery is not None
            opened = await self._nursery.start(self._hold, digest, key)
        if isinstance(opened, Client):
            return opened
        if isinstance(opened, SyscallError) and opened.errno is Errno.EPERM:
            raise invalid_api_key("Incorrect API key provided.") from opened
        assert isinstance(opened, Exception)
        raise opened

    async def _hold(
        self, digest: bytes, key: str, *, task_status: trio.TaskStatus[Client | Exception]
    ) -> None:
        is_open = False
        try:
            async with open_client(self.link.socket_path, "gateway", key) as client:
                self._clients[digest] = client
                is_open = True
                task_status.started(client)
                while True:
                    await client.events(NEVER, follow=True)
        except (ConnectionLost, SyscallError) as error:
            if not is_open:
                task_status.started(error)
        finally:
            self._clients.pop(digest, None)
