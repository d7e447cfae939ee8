"""One HTTP request and its response, as an ASGI application sees them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import attrs
import msgspec
import trio

from shell.gateway.body_file import LARGE_BYTES, BodyFile
from shell.gateway.errors import ApiError, ClientDisconnected
from shell.gateway.http1 import Outlet
from shell.gateway.uploads import Uploads
from syscalls.client import Client

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_encoder = msgspec.json.Encoder()


def choose_request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """Take the client's `x-request-id` when it is well formed, else make one."""
    for name, value in headers:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(given):
                return given
    return f"req-{secrets.token_hex(12)}"


def find_content_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Return the promised length of the body; None: none was, as with chunks."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


def find_content_encoding(headers: list[tuple[bytes, bytes]]) -> str:
    """Return how the body was packed; "" for as it is."""
    given = b",".join(value for name, value in headers if name == b"content-encoding").decode("latin-1")
    return "" if given.strip().lower() == "identity" else given.strip()


class Asker(Protocol):
    """What the preparation of a job reads and writes of the request that it is for."""

    request_id: str
    ignored: list[str]


@attrs.define(eq=False, kw_only=True)
class Exchange:
    """A request, the response as far as it has come, and what the log line will say about both.

    Times are seconds on the run's clock.
    """

    # Fixed when the request line and headers were read.
    method: str
    path: str
    request_id: str
    content_length: int | None = None  # what the headers promise
    content_encoding: str = ""  # how the body was packed; "": as it is
    path_params: dict[str, Any] = attrs.field(factory=dict)
    query: dict[str, str] = attrs.field(factory=dict)  # the last value of each name
    started: float = attrs.field(factory=trio.current_time)
    outlet: Outlet | None = None  # a short way for the body of a stream; None: the server has none
    _receive: Receive
    _send: Send

    # Written by the endpoint, for the response headers and the log.
    endpoint: str = "other"  # bounded: a metrics label
    client: Client | None = None  # its tenant's session with the kernel; None: the gateway's own
    pids: tuple[int, ...] = ()
    rate_headers: dict[str, str] = attrs.field(factory=dict)
    ignored: list[str] = attrs.field(factory=list)
    noted: dict[str, Any] = attrs.field(factory=dict)  # more fields of the log line
    failure: BaseException | None = None  # why `guard` ended the work, or what followed a 200

    # Written below only.
    status: int = 0  # 0: no response yet
    is_streaming: bool = False  # headers of an event stream were sent, its end was not
    is_complete: bool = False  # the last of the response is under way: a disconnect is its ordinary end
    is_body_read: bool = False
    num_body_bytes: int = 0  # reserved in `Uploads` until the request is over
    _body_file: BodyFile | None = None  # a large body until it is decoded; it has a place in `Uploads`
    is_disconnected: bool = False
    _scope: trio.CancelScope | None = None

    @property
    def age(self) -> float:
        """Seconds since the request arrived."""
        return trio.current_time() - self.started

    # --- the request's body --------------------------------------------------------------------------------

    async def _receive_body(self) -> bytes:
        """Take the next piece of the body. Raises ClientDisconnected."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_disconnected = True
            raise ClientDisconnected
        self.is_body_read = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece

    async def read_body(self, uploads: Uploads) -> bytearray | BodyFile:
        """Read the whole body. A promised length is checked first; what counts is what arrives.

        Returns:
            The bytes; a file in memory when they are many, until `close_body_file`.

        Raises:
            ApiError: 413 over the limit of a body; 503 over that of all bodies, 429 over that of the key's;
                408 when the client stops sending, or trickles.
            ClientDisconnected: it went away.
        """
        uploads.check_promise(self.content_length, self.client)
        body: bytearray | BodyFile = bytearray()  # it grows in place: joined pieces are there twice
        begun = trio.current_time()
        while not self.is_body_read:
            with trio.move_on_at(begun + uploads.seconds_for(self.num_body_bytes)) as patience:
                piece = await self._receive_body()
            if patience.cancelled_caught:
                raise uploads.too_slow()
            uploads.check_body(self.num_body_bytes + len(piece))
            uploads.reserve(len(piece), self.client)
            self.num_body_bytes += len(piece)
            if isinstance(body, bytearray):
                body += piece
                if len(body) > LARGE_BYTES:
                    body = self._open_body_file(uploads, body)
            else:
                body.write(piece)
        return body

    def _open_body_file(self, uploads: Uploads, begun: bytearray) -> BodyFile:
        uploads.enter_large(self.client)
        self._body_file = BodyFile()
        self._body_file.write(begun)
        return self._body_file

    def close_body_file(self, uploads: Uploads) -> None:
        """Let go of a large body and its place; without one, or once more, it does nothing."""
        if self._body_file is not None:
            self._body_file.close()
            self._body_file = None
            uploads.leave_large(self.client)

    def release_body(self, uploads: Uploads) -> None:
        """Give back all that the body had, at the end of the request."""
        self.close_body_file(uploads)
        uploads.release(self.num_body_bytes, self.client)

    # --- the client's presence -----------------------------------------------------------------------------

    def abort(self, failure: BaseException) -> None:
        """End the guarded work now; `guard` raises `failure`. The first one counts.

        Without effect once the last of the response is under way.
        """
        if self.is_complete:
            return
        if self.failure is None:
            self.failure = failure
        if self._scope is not None:
            self._scope.cancel()

    async def guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, and end it at once when the client goes away or `abort` is called.

        Raises: what `work` raises (in a group), ClientDisconnected, or the failure given to `abort`.
        """
        with trio.CancelScope() as self._scope:
            if self.failure is not None:
                self._scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_client)
                await work()
                nursery.cancel_scope.cancel()
        self._scope = None
        if self.failure is not None:
            raise self.failure

    async def _watch_client(self) -> None:
        try:
            while True:
                await self._receive_body()
        except ClientDisconnected as error:
            self.abort(error)

    # --- the response --------------------------------------------------------------------------------------

    def _common_headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", self.request_id.encode())]
        if self.pids:
            headers.append((b"x-llmos-pid", ",".join(map(str, self.pids[:16])).encode()))
        if self.ignored:
            names = ",".join(self.ignored)[:1024]
            headers.append((b"x-llmos-ignored-params", names.encode("ascii", "replace").translate(_VISIBLE)))
        headers += [(name.encode(), value.encode()) for name, value in self.rate_headers.items()]
        return headers

    async def respond(
        self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        """Send a whole response."""
        self.status = status
        all_headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"openai-processing-ms", str(round(self.age * 1000)).encode()),
            *self._common_headers(),
            *((name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
        self.is_complete = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def respond_json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """Send a JSON response."""
        await self.respond(status, _encoder.encode(value), "application/json", headers)

    async def respond_error(self, error: ApiError) -> None:
        """Send an error response, also to a client that is still sending its body."""
        await self.respond_json(error.status, error.body(), error.headers)

    async def begin_events(self) -> None:
        """Send the headers of an event stream."""
        self.status = 200
        self.is_streaming = True
        headers = [*SSE_HEADERS, *self._common_headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send_events(self, data: bytes) -> None:
        """Send whole events, in one write; none: wait until those that were put into the outlet are gone."""
        if self.outlet is not None:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not data or not self.outlet.write_nowait(data):
                await self.outlet.drain()
        elif data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_events(self) -> None:
        """End the event stream."""
        self.is_streaming = False
        self.is_complete = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


_VISIBLE = bytes(code if 0x20 < code < 0x7F else 0x3F for code in range(256))  # others as "?"
