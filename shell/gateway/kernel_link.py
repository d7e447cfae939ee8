"""The gateway's session with the kernel: opened again, with growing pauses, whenever it is lost."""

from __future__ import annotations

import attrs
import structlog
import trio

from shell.gateway.errors import kernel_lost
from syscalls.client import Client, ConnectionLost, open_client
from syscalls.errno import SyscallError
from syscalls.system import Model, ModelList

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
REFRESH_SECONDS = 1.0
NEVER = 2**62  # an event number that does not come: following it waits for the end of the session

log = structlog.get_logger("gateway.kernel")


@attrs.define(eq=False)
class KernelLink:
    """Owns the session; others ask for `client` each time and never keep it.

    `models` is what the kernel served when it last told, at most about a second ago, and `loading` names the
    ones that will follow; () without a kernel.
    `needs_key` is what it said when the session was opened last: clients act for tenants, and have keys.
    """

    socket_path: str | None
    models: tuple[Model, ...] = ()
    loading: tuple[str, ...] = ()
    models_changed: trio.Event = attrs.field(factory=trio.Event)  # set once they are others, and replaced
    needs_key: bool = False
    _client: Client | None = None
    _connected: trio.Event = attrs.field(factory=trio.Event)  # replaced when a session is lost
    _has_tried: trio.Event = attrs.field(factory=trio.Event)

    @property
    def is_connected(self) -> bool:
        """True while a session is open."""
        return self._client is not None

    @property
    def client(self) -> Client:
        """The open session. Raises ApiError 503 when there is none."""
        if self._client is None:
            raise kernel_lost()
        return self._client

    async def run(self) -> None:
        """Keep a session open, for ever."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                async with open_client(self.socket_path, "gateway") as client:
                    await self._look(client)
                    self.needs_key = client.welcome.needs_key
                    self._client = client
                    self._connected.set()
                    self._has_tried.set()
                    pause = FIRST_PAUSE_SECONDS
                    log.info("connected", models=[model.name for model in self.models])
                    await self._stay(client)
            except (ConnectionLost, SyscallError) as error:
                self._has_tried.set()
                log.warning("not_connected", error=str(error), retry_seconds=pause)
            finally:
                self._client = None
                if self._connected.is_set():
                    self._connected = trio.Event()
                self._take(ModelList(()))
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def wait_connected(self) -> None:
        """Wait until a session is open."""
        await self._connected.wait()

    async def wait_tried(self) -> None:
        """Wait until a session was open, or could not be opened."""
        await self._has_tried.wait()

    async def refresh(self) -> None:
        """Ask the kernel for its models now."""
        await self._look(self.client)

    async def _look(self, client: Client) -> None:
        self._take(await client.list_models())

    def _take(self, listed: ModelList) -> None:
        if (listed.models, listed.loading) != (self.models, self.loading):
            self.models, self.loading = listed.models, listed.loading
            changed, self.models_changed = self.models_changed, trio.Event()
            changed.set()

    async def _stay(self, client: Client) -> None:
        """Refresh the models until the session ends, then raise why."""
        lost: Exception | None = None

        async def watch() -> None:
            nonlocal lost
            try:
                while True:
                    await client.events(NEVER, follow=True)
                    await trio.sleep(REFRESH_SECONDS)  # only a kernel that numbers differently gets here
            except (ConnectionLost, SyscallError) as error:
                lost = error
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            while lost is None:
                await trio.sleep(REFRESH_SECONDS)
                try:
                    await self._look(client)
                except (ConnectionLost, SyscallError) as error:
                    lost = error
            nursery.cancel_scope.cancel()
        if lost is not None:
            raise lost
