"""`deadline_ms`: a request without a first token when its time is up is ended; one that has begun goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from shell.gateway.errors import ApiError
from shell.gateway.exchange import Exchange
from shell.gateway.process_errors import NO_RETRY


def deadline_exceeded(seconds: float) -> ApiError:
    """A 408 that clients do not retry: nobody waits for the answer any more."""
    message = f"The request had no first token {seconds * 1000:g} ms after it came, which is its deadline."
    return ApiError(408, "timeout_error", "deadline_exceeded", message, "deadline_ms", dict(NO_RETRY))


@asynccontextmanager
async def kept_deadline(
    exchange: Exchange, seconds: float | None, has_begun: Callable[[], bool]
) -> AsyncIterator[None]:
    """Abort an exchange at its deadline, unless it has begun to answer by then.

    Args:
        exchange: the block runs in its `guard`, which raises ApiError 408 `deadline_exceeded`.
        seconds: from when the request came; None: no deadline.
        has_begun: is there a first token?
    """

    async def watch(limit: float) -> None:
        await trio.sleep_until(exchange.started + limit)
        if not has_begun():
            exchange.abort(deadline_exceeded(limit))

    async with trio.open_nursery() as nursery:
        if seconds is not None:
            nursery.start_soon(watch, seconds)
        yield
        nursery.cancel_scope.cancel()
