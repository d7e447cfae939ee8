"""One connection: HTTP/1.1 by h11, over TLS or not, one request after the other, each to the application.

The application pulls: what it does not `receive` stays in the system's buffer, and a client that goes away is
noticed by whoever receives. Bytes of an answer are written at once, without a task, and waited for only when
the client is slower than we are: a token's way out is short when 256 others wait for theirs.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import unquote

import attrs
import h11
import msgspec
import structlog
import trio

from shell.gateway.http_request import check_request, explain_bad_request
from shell.gateway.tls import TlsCodec

App = Callable[..., Awaitable[None]]
Message = dict[str, Any]

RECEIVE_BYTES = 64 << 10
MAX_HEAD_BYTES = 64 << 10
LINGER_SECONDS = 2.0  # for a client to close, after the end of the last answer
MAX_LINGER_BYTES = 64 << 20  # taken meanwhile: many clients read an answer only when their body is sent
MAX_AHEAD_BYTES = 64 << 10  # of the next request, taken while this one is answered
OUTLET = "llmos.outlet"  # the extension of the ASGI scope
DISCONNECT: Message = {"type": "http.disconnect"}
NO_BODY = (204, 304)
_ABSOLUTE = re.compile(rb"^https?://[^/?]*", re.IGNORECASE)  # as proxies are asked; servers must take it, too

log = structlog.get_logger("gateway.http")


class Outlet(Protocol):
    """Where the body of an answer goes that has begun, past the application's `send`."""

    def write_nowait(self, data: bytes) -> bool:
        """Take a part of the body; False: it waits for the client, and `drain` comes before more."""
        ...

    async def drain(self) -> None:
        """Wait until nothing waits for the client. A checkpoint only when something does."""
        ...


def make_head(status: int, headers: list[tuple[bytes, bytes]]) -> h11.Response:
    """The head of an answer. Raises h11.LocalProtocolError for a header that is none."""
    date = (b"date", formatdate(usegmt=True).encode())
    return h11.Response(status_code=status, headers=[*headers, date])


@attrs.define(eq=False)
class Connection:
    """Serves one client until one of us closes.

    Args:
        stream: to the client; closed at the end.
        app: the ASGI application.
        keep_alive_timeout: seconds for the whole head of a request, and a handshake before it, to come.
        tls: what the bytes of the stream go through; None: nothing.
    """

    stream: trio.SocketStream
    app: App
    keep_alive_timeout: float
    tls: TlsCodec | None = None
    is_stopping: bool = False  # no request follows the one that is answered
    _http: h11.Connection = attrs.field(
        factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    )
    _idle: trio.CancelScope | None = None  # set while it waits for a request
    _descriptor: int = -1
    _unsent: bytearray = attrs.field(factory=bytearray)
    _is_draining: bool = False
    _is_broken: bool = False  # the client is gone, or an answer was cut: nothing more can be said

    # Of the request that is answered.
    _is_bodiless: bool = False
    _is_chunked: bool = False
    _is_body_short: bool = True  # passed over where the application does not want it
    _held_head: bytes = b""  # goes out with the body that follows it at once
    _is_complete: bool = False
    _receiving: trio.CancelScope | None = None

    async def run(self) -> None:
        """Serve. Never raises for what a client does."""
        self._descriptor = self.stream.socket.fileno()
        try:
            while (request := await self._next_request()) is not None:
                await self._answer(request)
                if not await self._can_go_on():
                    break
            if self.tls is not None and not self._is_broken:
                self._write_wire(self.tls.farewell())
            await self.drain()
            await self.stream.send_eof()
            if self._http.their_state in (h11.SEND_BODY, h11.ERROR):
                # What arrives at a closed socket takes the answer back that the client has not read yet.
                num_left = MAX_LINGER_BYTES
                with trio.move_on_after(LINGER_SECONDS):
                    while num_left > 0 and (data := await self.stream.receive_some(RECEIVE_BYTES)):
                        num_left -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(self.stream)

    def stop(self) -> None:
        """Close when the request under way is answered; at once when there is none. Not a checkpoint."""
        self.is_stopping = True
        if self._idle is not None:
            self._idle.cancel()

    # --- the wire ----------------------------------------------------------------------------------------

    async def _receive_some(self) -> bytes:
        """Wait for what the client says next; b"": it says nothing more. A checkpoint, but for that.

        Raises trio.BrokenResourceError: the connection was reset, or what comes is no TLS.
        """
        while self.tls is None or not self.tls.is_over:
            data = await self.stream.receive_some(RECEIVE_BYTES)
            if self.tls is None:
                return bytes(data)
            try:
                said = self.tls.open(data)
            except ssl.SSLError as error:
                self._write_wire(self.tls.take_output())
                raise trio.BrokenResourceError("what the client sends is not TLS") from error
            self._write_wire(self.tls.take_output())
            if said:
                return said
        return b""

    def _write_wire(self, data: bytes) -> bool:
        """Write bytes now, or as soon as the client lets us; True: all are written."""
        if self._is_broken:
            return True
        if self._unsent or self._is_draining:
            self._unsent += data
            return False
        try:
            num_sent = os.write(self._descriptor, data)
        except BlockingIOError:
            num_sent = 0
        except OSError:
            self._is_broken = True  # whoever receives finds out the same
            return True
        if num_sent < len(data):
            self._unsent += data[num_sent:]
        return num_sent == len(data)

    # --- requests ----------------------------------------------------------------------------------------

    async def _next_request(self) -> h11.Request | None:
        """Wait for the head of a request; None: none comes."""
        if self.is_stopping:
            return None
        try:
            with trio.move_on_after(self.keep_alive_timeout) as self._idle:
                event = await self._next_event()
                if not isinstance(event, h11.Request):
                    return None
                check_request(event)
                return event
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
        finally:
            self._idle = None
        return None

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        """Take h11's next event off the wire. A checkpoint when bytes are needed.

        Raises h11.RemoteProtocolError: what comes is not HTTP, or ends in the middle.
        """
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self.write_raw(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            self._http.receive_data(await self._receive_some())
        assert not isinstance(event, type) or event is h11.PAUSED
        return event

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Say that it is no request, where that can still be said."""
        self._is_broken = True
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        problem = explain_bad_request(error)
        body = msgspec.json.encode(problem.body())
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(body)).encode()))
        said = self._http.send(make_head(problem.status, headers)) or b""
        said += (self._http.send(h11.Data(data=body)) or b"") + (self._http.send(h11.EndOfMessage()) or b"")
        self._is_broken = False
        self.write_raw(said)
        await self.drain()
        self._is_broken = True

    async def _answer(self, request: h11.Request) -> None:
        self._is_complete = self._is_chunked = False
        headers = dict(request.headers)
        has_end = b"transfer-encoding" not in headers
        self._is_body_short = (
            has_end
            and not self._http.they_are_waiting_for_100_continue
            and int(headers.get(b"content-length", 0)) <= MAX_AHEAD_BYTES
        )
        self._is_bodiless = request.method == b"HEAD"
        try:
            await self.app(self._make_scope(request), self._receive, self._send)
        except Exception:
            log.exception("application_failed", target=request.target.decode("latin-1"))
            self._is_broken = True
        if not self._is_complete:
            self._is_broken = True  # the end of the connection tells the client that the answer was cut

    def _make_scope(self, request: h11.Request) -> Message:
        path, _, query = _ABSOLUTE.sub(b"", request.target, count=1).partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode(),
            "method": request.method.decode().upper(),
            "scheme": "http" if self.tls is None else "https",
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "extensions": {OUTLET: self},
        }

    async def _can_go_on(self) -> bool:
        """Make ready for the next request; False: there can be none."""
        if self._is_broken or self.is_stopping or self._http.our_state is not h11.DONE:
            return False
        try:
            # A body that nobody asked for may still be on its way: its client was not told of an end.
            with trio.move_on_after(self.keep_alive_timeout) as self._idle:
                while self._http.their_state is h11.SEND_BODY:
                    await self._next_event()
        except h11.RemoteProtocolError:
            return False
        finally:
            self._idle = None
        if self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def _receive(self) -> Message:
        """The application's `receive`: the next part of the body, or that the client went away."""
        if self._is_complete or self._is_broken:
            return DISCONNECT
        with trio.CancelScope() as self._receiving:  # the end of the answer ends it
            try:
                if self._http.their_state is h11.SEND_BODY:
                    event = await self._next_event()
                    if isinstance(event, h11.Data):
                        return {"type": "http.request", "body": bytes(event.data), "more_body": True}
                    if isinstance(event, h11.EndOfMessage):
                        return {"type": "http.request", "body": b"", "more_body": False}
                await self._wait_closed()
            except h11.RemoteProtocolError as error:
                await self._refuse(error)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._is_broken = True
        return DISCONNECT

    async def _wait_closed(self) -> None:
        """Wait until the client closes its side; the beginning of its next request is kept."""
        while data := await self._receive_some():
            self._http.receive_data(data)
            if len(self._http.trailing_data[0]) > MAX_AHEAD_BYTES:
                await trio.sleep_forever()
        self._is_broken = True

    # --- answers -----------------------------------------------------------------------------------------

    async def _send(self, message: Message) -> None:
        """The application's `send`. What is sent to a client that is gone is dropped."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._is_broken or self._is_complete:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], list(message.get("headers", ())))
        else:
            self._write_body(message.get("body", b""), is_last=not message.get("more_body", False))
        await self.drain()

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        has_length = any(name == b"content-length" for name, _ in headers)
        self._is_bodiless = self._is_bodiless or status in NO_BODY
        self._is_chunked = not (has_length or self._is_bodiless or self._http.their_http_version == b"1.0")
        if self._http.their_state is h11.SEND_BODY and not self._is_body_short:
            headers[:] = [(name, value) for name, value in headers if name != b"connection"]
            headers.append((b"connection", b"close"))  # too much to pass over, or it may never come
        head = self._http.send(make_head(status, headers)) or b""
        if has_length:
            self._held_head = head
        else:
            self.write_raw(head)

    def _write_body(self, data: bytes, *, is_last: bool) -> None:
        framed = b"" if self._is_bodiless or not data else self._http.send(h11.Data(data=data)) or b""
        if is_last:
            framed += self._http.send(h11.EndOfMessage()) or b""
        framed, self._held_head = self._held_head + framed, b""
        self.write_raw(framed)
        if is_last:
            self._is_complete = True
            if self._receiving is not None:
                self._receiving.cancel()

    def write_nowait(self, data: bytes) -> bool:
        """See Outlet. h11 need not see these bytes: parts of a body do not change its state."""
        if self._is_bodiless:
            return True
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        return self._write_wire(data) if self.tls is None else self.write_raw(data)

    def write_raw(self, data: bytes) -> bool:
        """Say bytes as they are, now or as soon as the client lets us; True: all are written."""
        if self._is_broken:
            return True
        if self.tls is not None:
            try:
                data = self.tls.seal(data)
            except ssl.SSLError:
                self._is_broken = True
                return True
        return self._write_wire(data)

    async def drain(self) -> None:
        """See Outlet. Cancelled means that the answer was cut, and the connection with it."""
        if self._is_draining or not self._unsent:
            return
        self._is_draining = True
        try:
            while self._unsent and not self._is_broken:
                data, self._unsent = bytes(self._unsent), bytearray()
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._is_broken = True
        except BaseException:
            self._is_broken = True
            raise
        finally:
            self._is_draining = False
