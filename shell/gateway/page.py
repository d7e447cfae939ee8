"""`/ui`: the live page's files, its stream of what changes, and its buttons.

The files tell nothing and are public. The stream and the buttons act through the caller's own session with
the kernel: what a viewer sees and may do is the kernel's decision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import attrs
import msgspec
import trio
from msgspec import Meta

from shell.gateway.errors import ApiError
from shell.gateway.exchange import Exchange, Receive, Scope, Send
from shell.gateway.fields import FieldTable, implemented, read_fields
from shell.gateway.json_body import read_json
from shell.gateway.page_sampler import HISTORY_SECONDS, Sampler
from shell.gateway.process_errors import explaining_processes, not_found, read_pid
from shell.gateway.replies.processes import DoneAction, Life, Moment
from shell.gateway.service import Endpoint
from shell.gateway.sse import EventWriter
from syscalls.client import Client
from syscalls.errno import Errno, SyscallError

FOLDER = Path(__file__).parent / "ui"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
NUM_ENTRIES = 12  # of a process's timeline: the last ones
ACTIONS = ("kill", "stop", "cont", "nice")
# A page of another site cannot send this header without asking first, and is never answered when it asks.
GUARD = b"x-llmos-page"

NICE_FIELDS: FieldTable = implemented("nice")


class NiceFields(msgspec.Struct):
    """The body of `/ui/process/{pid}/nice`."""

    nice: Annotated[int, Meta(ge=-20, le=19)]


class PageFile(Endpoint):
    """Serves one of the page's files by its name."""

    name = "ui"
    is_public = True
    media_types = tuple(TYPES.values())

    async def answer(self, exchange: Exchange) -> None:
        """Look the name up among the files that there are: no path is ever made of it."""
        name = exchange.path_params.get("file", "index.html")
        found = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
        if name not in found:
            raise not_found("unknown_url", f"There is no file `{name[:80]}` of the page.")
        body = await trio.Path(found[name]).read_bytes()
        await exchange.respond(200, body, TYPES[found[name].suffix], HEADERS)


@attrs.define(eq=False)
class PageStream(Endpoint):
    """Sends the state, then what changes in it. Viewers with one session share each look at the kernel."""

    name = "ui.stream"
    event_type = dict[str, Any]
    _samplers: dict[Client, Sampler] = attrs.field(factory=dict)

    async def answer(self, exchange: Exchange) -> None:
        """Stream until the viewer leaves, the server drains or the kernel is gone."""
        config = self.service.config
        sampler = self._sampler_of(self.client_of(exchange))
        writer = EventWriter(exchange, None, config.send_timeout)

        async def stream() -> None:
            version = 0
            while not self.service.admission.is_draining:
                version, data = await sampler.next(version)
                await writer.begin()
                await writer.send_raw(data)

        sampler.num_viewers += 1
        try:
            await exchange.guard(stream)
            await exchange.end_events()
        finally:
            sampler.num_viewers -= 1
            sampler.left_at = trio.current_time()

    def _sampler_of(self, client: Client) -> Sampler:
        """Return the looks of a session; those that nobody has wanted for long are forgotten."""
        longest = trio.current_time() - HISTORY_SECONDS
        for each in [*self._samplers.values()]:
            if not each.num_viewers and each.left_at < longest:
                del self._samplers[each.client]
        return self._samplers.setdefault(client, Sampler(client, self.service.metrics.waits))


class ProcessLife(Endpoint):
    """`GET /ui/process/{pid}`: where its time went, and what the kernel says about it."""

    name = "ui.life"
    answer_type = Life

    async def answer(self, exchange: Exchange) -> None:
        """Ask as the caller."""
        with explaining_processes():
            found = await self.client_of(exchange).why(read_pid(exchange.path_params["pid"], "pid"))
        seconds = {name: value for name, value in found.seconds.items() if value}
        last = found.entries[-NUM_ENTRIES:]
        moments = [Moment(each.kind, each.at, each.seconds, each.count, each.text) for each in last]
        await exchange.respond_json(200, Life(found.pid, found.state, found.verdict, seconds, moments))


class ProcessAction(Endpoint):
    """`POST /ui/process/{pid}/kill|stop|cont|nice`."""

    name = "ui.action"
    body_type = NiceFields  # of `nice`; the others have none
    answer_type = DoneAction

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not any(name == GUARD for name, _ in scope["headers"]):
            message = (
                "The header x-llmos-page is missing: it keeps other sites' pages from pressing the buttons."
            )
            raise ApiError(403, "permission_error", "permission_denied", message)
        await super().__call__(scope, receive, send)

    async def answer(self, exchange: Exchange) -> None:
        """Do it as the caller, and answer when it is done."""
        action = exchange.path_params["action"]
        if action not in ACTIONS:
            raise not_found("unknown_url", f"There is no action `{action[:40]}`: {', '.join(ACTIONS)}.")
        pid, client = read_pid(exchange.path_params["pid"], "pid"), self.client_of(exchange)
        with explaining_processes():
            match action:
                case "kill":
                    await client.kill(pid)
                case "stop":
                    await client.stop(pid)
                case "cont":
                    await client.cont(pid)
                case _:
                    body = await read_json(self.service, exchange)
                    fields = read_fields(body, NICE_FIELDS, NiceFields, exchange.ignored)
                    await self._renice(client, pid, fields.nice)
        await exchange.respond_json(200, {"pid": pid, "action": action})

    async def _renice(self, client: Client, pid: int, nice: int) -> None:
        try:
            await client.nice(pid, nice)
        except SyscallError as error:
            if error.errno is not Errno.EPERM:
                raise
            await client.stat(pid)  # refused too where the process is another tenant's: then there is none
            raise ApiError(403, "permission_error", "permission_denied", f"{error.message}.") from error
