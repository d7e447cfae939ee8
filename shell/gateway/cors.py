"""Cross-origin requests: which web pages may call the gateway from a browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import attrs

from shell.gateway.exchange import Receive, Scope, Send

ANY_ORIGIN = "*"
PREFLIGHT_SECONDS = 600  # how long a browser may remember the answer
METHODS = b"GET, POST, DELETE, OPTIONS"
EXPOSED = (
    b"x-request-id, x-llmos-pid, x-llmos-ignored-params, openai-processing-ms, retry-after, "
    b"retry-after-ms, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


@attrs.frozen(eq=False)
class Cors:
    """Stands before an ASGI application and tells browsers that pages of `origins` may read its answers.

    A preflight is answered here, so it needs no key. Others are passed on, refused origins too: it is the
    browser that keeps an answer without our headers from its page. Cookies play no part, so `*` is safe
    with keys.
    """

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    origins: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        origin = headers.get(b"origin", b"")
        if scope["type"] != "http" or not self.allows(origin):
            await self.app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
            answer = [
                *self.origin_headers(origin),
                (b"access-control-allow-methods", METHODS),
                (b"access-control-allow-headers", wanted),
                (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": answer})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                marks = [*self.origin_headers(origin), (b"access-control-expose-headers", EXPOSED)]
                message = {**message, "headers": [*message["headers"], *marks]}
            await send(message)

        await self.app(scope, receive, send_marked)

    def allows(self, origin: bytes) -> bool:
        """True for an origin that is listed; "" is no origin."""
        return bool(origin) and (ANY_ORIGIN in self.origins or origin.decode("latin-1") in self.origins)

    def origin_headers(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        """Name the origin, and keep caches from giving one origin's answer to another."""
        if ANY_ORIGIN in self.origins:
            return [(b"access-control-allow-origin", b"*")]
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
