"""Server-sent events: framing, one write for whole events, keep-alive, and a client that stops reading."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import msgspec
import trio

from shell.gateway.exchange import Exchange

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encoder = msgspec.json.Encoder()


class SendStalled(Exception):
    """The client took nothing for the whole send timeout."""


def encode_event(value: Any) -> bytes:
    """Frame one event: JSON never holds a raw line break, so it is one line."""
    return b"data: " + _encoder.encode(value) + b"\n\n"


@attrs.define(eq=False)
class EventWriter:
    """Writes events of one response. Any task may send; sends that wait for one another share a write.

    A send returns when the server has taken the bytes, so a caller that reads on only after its send keeps
    at most one event of its own waiting. Times are seconds on the run's clock.
    """

    exchange: Exchange
    ping_interval: float | None
    send_timeout: float
    num_writes: int = 0
    _has_begun: bool = False
    _pending: list[bytes] = attrs.field(factory=list)
    _lock: trio.Lock = attrs.field(factory=trio.Lock)
    _clock: trio.abc.Clock = attrs.field(factory=trio.lowlevel.current_clock)
    _last_write: float = attrs.field(factory=trio.current_time)
    _write_began: float | None = None  # set while a write is under way

    async def begin(self) -> None:
        """Send the response's headers."""
        async with self._lock:
            if not self._has_begun:
                self._has_begun = True
                await self.exchange.begin_events()
                self._last_write = trio.current_time()

    def put(self, data: bytes) -> bool:
        """Take framed events, and write them at once where the server can; False: `flush` before more."""
        outlet = self.exchange.outlet
        if outlet is None or self._pending or self._lock.locked():
            self._pending.append(data)
            return False
        self.num_writes += 1
        self._last_write = self._clock.current_time()
        return outlet.write_nowait(data)

    async def flush(self) -> None:
        """Wait until what was put has been taken by the server."""
        async with self._lock:  # whoever holds it writes for all who wait; they find nothing left to do
            gathered, self._pending = b"".join(self._pending), []
            self._write_began = trio.current_time()
            try:
                await self.exchange.send_events(gathered)
            finally:
                self._write_began = None
            self.num_writes += bool(gathered)
            self._last_write = trio.current_time()

    async def send_raw(self, data: bytes) -> None:
        """Send framed events."""
        if not self.put(data):
            await self.flush()

    async def watch(self, on_stall: Callable[[], Awaitable[None]]) -> None:
        """Send keep-alives when nothing else was sent, and call `on_stall` once when a write hangs; for ever.

        The server's writes cannot be cancelled: a stalled one ends when the system gives the connection up
        (TCP_USER_TIMEOUT). The processes need not wait for that: `on_stall` ends them.
        """
        while True:
            now = trio.current_time()
            if self._write_began is not None:
                deadline = self._write_began + self.send_timeout
                if now >= deadline:
                    await on_stall()
                    return
                await trio.sleep_until(deadline)
            elif self.ping_interval is None:
                await trio.sleep(self.send_timeout)
            elif now >= self._last_write + self.ping_interval:
                await self.send_raw(KEEP_ALIVE)
            else:
                next_ping = self._last_write + self.ping_interval
                await trio.sleep_until(min(next_ping, now + self.send_timeout))
