"""Holds conversations with a kernel, and tells when each token came. A Chat knows how to reach the kernel."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from typing import Protocol

import attrs
import trio

from llmos.bench.conversations import Conversation
from llmos.bench.workload import percentile


@attrs.define
class TurnTimes:
    """One turn as its person sees it, in seconds of the run's clock."""

    asked_at: float
    arrivals: list[float] = attrs.field(factory=list)  # of tokens; those that come together have one time
    given_up_at: float | None = None  # when nobody waited for the rest any longer; None: all have come


class Chat(Protocol):
    """One process that a conversation is held with."""

    async def say(self, tokens: Sequence[int], num_output_tokens: int, times: TurnTimes) -> Sequence[int]:
        """Write a turn, fill the arrivals in as its tokens come, and return those."""


OpenChat = Callable[[Conversation], AbstractAsyncContextManager[Chat]]


@attrs.define
class Held:
    """What came of holding conversations."""

    turns: list[TurnTimes]
    seconds: float  # from the start to the last token, or until all was stopped
    digests: dict[int, str]  # of each conversation's answers, by its number; of those that came to their end
    num_output_tokens: int


async def hold_all(
    conversations: Sequence[Conversation],
    vocab_size: int,
    open_chat: OpenChat,
    most_seconds: float = math.inf,
) -> Held:
    """Hold all conversations, each from when it starts; returns when all are over, or are stopped.

    Args:
        conversations: their starts count from now.
        vocab_size: of the model.
        open_chat: opens the process of a conversation.
        most_seconds: stop what is left then; turns that were asked for by then count, as far as they came.
    """
    turns: list[TurnTimes] = []
    digests: dict[int, str] = {}
    waiting: dict[int, TurnTimes] = {}  # turns that have been asked and not answered, by conversation
    written = {  # drawn now: who asks is in the kernel's process, and would hold it up
        conversation.number: [
            conversation.input_tokens(i, vocab_size) for i in range(len(conversation.turns))
        ]
        for conversation in conversations
    }
    began = trio.current_time()

    async def hold(conversation: Conversation) -> None:
        await trio.sleep_until(began + conversation.starts_at)
        answers = hashlib.blake2b(digest_size=16)
        async with open_chat(conversation) as chat:
            for number, turn in enumerate(conversation.turns):
                await trio.sleep(turn.pause_seconds)
                times = waiting[conversation.number] = TurnTimes(trio.current_time())
                turns.append(times)
                tokens = written[conversation.number][number]
                answer = await chat.say(tokens, turn.num_output_tokens, times)
                del waiting[conversation.number]
                answers.update(repr(list(answer)).encode())
        digests[conversation.number] = answers.hexdigest()

    with trio.move_on_at(began + most_seconds) as scope:
        async with trio.open_nursery() as nursery:
            for conversation in conversations:
                nursery.start_soon(hold, conversation)
                await trio.lowlevel.checkpoint()  # in order: trio starts the tasks of one batch in any
    for times in waiting.values():
        times.given_up_at = began + most_seconds
    seconds = most_seconds if scope.cancelled_caught else max(t.arrivals[-1] for t in turns) - began
    return Held(turns, seconds, digests, sum(len(times.arrivals) for times in turns))


@attrs.frozen
class Latencies:
    """What people waited: percentiles in seconds, and tokens per second of all together.

    TTFT is from a turn's being asked to its first token; TBT the time between two tokens of a turn. Who was
    still waiting when all was stopped counts with how long that was.
    """

    ttft: dict[float, float]  # by percentile
    tbt: dict[float, float]
    throughput: float

    @classmethod
    def of(cls, held: Held) -> Latencies:
        """Sum up."""
        first, gaps = [], []
        for times in held.turns:
            ends = times.arrivals if times.given_up_at is None else [*times.arrivals, times.given_up_at]
            first.append(ends[0] - times.asked_at)
            gaps += [b - a for a, b in pairwise(ends)]
        first.sort()
        gaps.sort()
        return cls(
            {percent: percentile(first, percent) for percent in (50.0, 95.0, 99.0)},
            {percent: percentile(gaps, percent) for percent in (50.0, 99.0, 99.9)} if gaps else {},
            held.num_output_tokens / held.seconds,
        )
