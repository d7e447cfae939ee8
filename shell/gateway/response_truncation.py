"""What is left of a conversation that is too long: with `truncation` "auto", its latest turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from shell.gateway.errors import ApiError
from shell.gateway.job import Job

Json = dict[str, Any]


def list_starts(messages: list[Json]) -> list[int]:
    """Return where a conversation may begin: with what a user says, so that nothing lacks what it answers."""
    return [index for index, message in enumerate(messages) if message["role"] == "user"]


def drop_before(messages: list[Json], start: int) -> list[Json]:
    """Return a conversation from a message on, and what the system had said before it."""
    kept = [message for message in messages[:start] if message["role"] in ("system", "developer")]
    return [*kept, *messages[start:]]


async def prepare_truncated(prepare: Callable[[list[Json]], Awaitable[Job]], messages: list[Json]) -> Job:
    """Prepare the answer to as much of the end of a conversation as fits.

    It takes as many tries as the number of turns has binary digits, not one for each turn.

    Args:
        prepare: renders, encodes and checks messages; a longer end never fits where a shorter one does not.
        messages: the whole conversation.

    Raises:
        ApiError: 400 `context_length_exceeded` when not even the last turn fits, and what `prepare` raises.
    """
    try:
        return await prepare(messages)
    except ApiError as error:
        if error.code != "context_length_exceeded":
            raise
        too_long = error
    starts = list_starts(messages)
    low, high, best = 0, len(starts), None  # the first start that fits is in low..high; high: none below it
    while low < high:
        middle = (low + high) // 2
        try:
            best = await prepare(drop_before(messages, starts[middle]))
            high = middle
        except ApiError as error:
            if error.code != "context_length_exceeded":
                raise
            low, too_long = middle + 1, error
    if best is None:
        raise too_long
    return best
