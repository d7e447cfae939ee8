"""Who may generate: a bounded number at once, nobody new while draining, and a way to end the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from shell.gateway.errors import draining, unavailable
from shell.gateway.exchange import Exchange
from shell.gateway.metrics import Metrics


@attrs.frozen
class AdmissionStatistics:
    """How many generation requests are served now, and whether new ones are let in."""

    num_in_flight: int
    is_draining: bool


@attrs.define(eq=False)
class Admission:
    """The set of generation requests in flight."""

    max_in_flight: int
    metrics: Metrics
    is_draining: bool = False
    _in_flight: set[Exchange] = attrs.field(factory=set)
    _left: trio.Event = attrs.field(factory=trio.Event)  # replaced whenever it was set

    def statistics(self) -> AdmissionStatistics:
        """Return a frozen view."""
        return AdmissionStatistics(len(self._in_flight), self.is_draining)

    def check(self) -> None:
        """Say before a body is read what would be said after. Raises ApiError 503 like `admit`."""
        if self.is_draining:
            raise draining()
        if len(self._in_flight) >= self.max_in_flight:
            raise unavailable(
                "overloaded", f"{self.max_in_flight} requests are in flight, which is the limit."
            )

    @contextmanager
    def admit(self, exchange: Exchange) -> Iterator[None]:
        """Hold a place for the block. Raises ApiError 503 `draining` or `overloaded`, immediately."""
        self.check()
        self._in_flight.add(exchange)
        self.metrics.in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.remove(exchange)
            self.metrics.in_flight.dec()
            self._left.set()
            self._left = trio.Event()

    async def drain(self, grace_seconds: float) -> None:
        """Admit nothing new, wait for what runs, then end the rest with `draining`, and wait for that."""
        self.is_draining = True
        with trio.move_on_after(grace_seconds):
            await self._wait_empty()
        for exchange in tuple(self._in_flight):
            exchange.abort(
                unavailable("draining", "The server shut down before the request was finished.", 5)
            )
        await self._wait_empty()

    async def _wait_empty(self) -> None:
        while self._in_flight:
            await self._left.wait()
