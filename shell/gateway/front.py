"""The front door: every request passes here first and last.

It tidies the path, gives the request its id, turns whatever goes wrong into the one error shape, counts, and
writes one log line. Below it are routes and endpoints only.
"""

from __future__ import annotations

import re
from typing import Any

import attrs
import structlog
from starlette.routing import Router

from shell.gateway.errors import ClientDisconnected, as_api_error, root_cause
from shell.gateway.exchange import (
    Exchange,
    Receive,
    Scope,
    Send,
    choose_request_id,
    find_content_encoding,
    find_content_length,
)
from shell.gateway.http1 import OUTLET
from shell.gateway.service import Service
from shell.gateway.sse import DONE, SendStalled, encode_event

CLIENT_CLOSED_REQUEST = 499  # for the log and the counters: nobody is left to see it

log = structlog.get_logger("gateway.request")
_SLASHES = re.compile(r"/{2,}")


def tidy_path(path: str) -> str:
    """Drop doubled slashes, and the one at the end."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"


@attrs.define(eq=False)
class Front:
    """The ASGI application."""

    service: Service
    router: Router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._serve(scope, receive, send)
            case "lifespan":
                await self._live(receive, send)
            case _:  # a WebSocket: refused, as the protocol asks, by closing before accepting
                await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = tidy_path(scope["path"])
        exchange = Exchange(
            method=scope["method"],
            path=path,
            request_id=choose_request_id(scope["headers"]),
            content_length=find_content_length(scope["headers"]),
            content_encoding=find_content_encoding(scope["headers"]),
            outlet=scope.get("extensions", {}).get(OUTLET),
            receive=receive,
            send=send,
        )
        inner: dict[str, Any] = {**scope, "path": path, "app": self, "llmos.exchange": exchange}
        if exchange.method == "HEAD":  # answered like GET; the server below leaves the body out
            inner["method"] = "GET"
        try:
            await self.router(inner, receive, send)
        except Exception as error:
            await self._fail(exchange, error)
        finally:
            exchange.release_body(self.service.uploads)
            self._record(exchange)

    async def _fail(self, exchange: Exchange, error: Exception) -> None:
        """Tell the client what went wrong, in whatever way is still open."""
        cause = root_cause(error)
        if isinstance(cause, ClientDisconnected | SendStalled):
            exchange.failure = cause
            return
        api_error = as_api_error(error, exchange.request_id, exchange.method, exchange.path)
        exchange.failure = api_error
        if api_error.code == "internal_error":
            log.error("internal_error", request_id=exchange.request_id, exc_info=error)
        try:
            if exchange.status == 0:
                await exchange.respond_error(api_error)
            elif exchange.is_streaming:
                await exchange.send_events(encode_event(api_error.body()) + DONE)
                await exchange.end_events()
        except ClientDisconnected as gone:
            exchange.failure = gone

    def _record(self, exchange: Exchange) -> None:
        status = exchange.status
        if isinstance(exchange.failure, ClientDisconnected | SendStalled) or status == 0:
            status = CLIENT_CLOSED_REQUEST
        seconds = exchange.age
        self.service.metrics.observe_request(exchange.endpoint, status, seconds)
        fields = dict(exchange.noted)
        if exchange.pids:
            fields["pids"] = list(exchange.pids)
        if exchange.ignored:
            fields["ignored"] = exchange.ignored
        if (code := getattr(exchange.failure, "code", None)) is not None:
            fields["code"] = code
        write = (
            log.debug if exchange.endpoint.startswith(("health", "metrics")) and status == 200 else log.info
        )
        write(
            "request",
            request_id=exchange.request_id,
            method=exchange.method,
            path=exchange.path,
            status=status,
            seconds=round(seconds, 6),
            **fields,
        )
