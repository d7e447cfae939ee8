"""Holds conversations with a kernel, and tells when each token came. A Chat knows how to reach the kernel."""

from __future__ import annotations

import hashlib
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


class Chat(Protocol):
    """One process that a conversation is held with."""

    async def say(self, tokens: Sequence[int], num_output_tokens: int, times: TurnTimes) -> Sequence[int]:
        """Write a turn, fill the arrivals in as its tokens come, and return those."""


OpenChat = Callable[[Conversation], AbstractAsyncContextManager[Chat]]


@attrs.define
class Held:
    """What came of holding conversations."""

    turns: list[TurnTimes]
    seconds: float  # from the start to the last token
    digests: dict[int, str]  # of each conversation's answers, by its number
    num_output_tokens: int


async def hold_all(
    conversations: Sequence[Conversation],
    vocab_size: int,
    open_chat: OpenChat,
    advance: Callable[[], None] = lambda: None,
) -> Held:
    """Hold all conversations, each from when it starts; returns when all are over.

    Args:
        conversations: their starts count from now.
        vocab_size: of the model.
        open_chat: opens the process of a conversation.
        advance: called as each one ends.
    """
    began = trio.current_time()
    turns: list[TurnTimes] = []
    digests: dict[int, str] = {}

    async def hold(conversation: Conversation) -> None:
        await trio.sleep_until(began + conversation.starts_at)
        answers = hashlib.blake2b(digest_size=16)
        async with open_chat(conversation) as chat:
            for number, turn in enumerate(conversation.turns):
                await trio.sleep(turn.pause_seconds)
                times = TurnTimes(trio.current_time())
                tokens = conversation.input_tokens(number, vocab_size)
                answer = await chat.say(tokens, turn.num_output_tokens, times)
                answers.update(repr(list(answer)).encode())
                turns.append(times)
        digests[conversation.number] = answers.hexdigest()
        advance()

    async with trio.open_nursery() as nursery:
        for conversation in conversations:
            nursery.start_soon(hold, conversation)
            await trio.lowlevel.checkpoint()  # in order: trio starts the tasks of one batch in any
    last = max(times.arrivals[-1] for times in turns)
    return Held(turns, last - began, digests, sum(len(times.arrivals) for times in turns))


@attrs.frozen
class Latencies:
    """What people waited: percentiles in seconds, and tokens per second of all together.

    TTFT is from a turn's being asked to its first token; TBT the time between two tokens of a turn.
    """

    ttft: dict[float, float]  # by percentile
    tbt: dict[float, float]
    throughput: float

    @classmethod
    def of(cls, held: Held) -> Latencies:
        """Sum up."""
        first = sorted(times.arrivals[0] - times.asked_at for times in held.turns)
        gaps = sorted(b - a for times in held.turns for a, b in pairwise(times.arrivals))
        return cls(
            {percent: percentile(first, percent) for percent in (50.0, 95.0, 99.0)},
            {percent: percentile(gaps, percent) for percent in (50.0, 99.0, 99.9)} if gaps else {},
            held.num_output_tokens / held.seconds,
        )
