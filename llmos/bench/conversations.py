"""Conversations of several turns for benchmarks, with the lengths of a production trace.

The trace lists requests, each with the tokens of its whole prompt and of its answer, and does not say which
of them belong together. A row is taken for the next turn of a conversation when its prompt is a little longer
than all that was said before: what it is longer by is what the person has just written. The number of turns
is drawn from a geometric distribution, starts from a Poisson process, and pauses from an exponential one.
"""

from __future__ import annotations

import bisect
import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import attrs

from llmos.config import ConfigError

DEFAULT_TRACE = "../shared/data/azure-llm-2023-conv/AzureLLMInferenceTrace_conv.csv"
MEAN_TURNS = 5.5
MAX_NEW_TOKENS = 512  # of a person's turn, before lengths are scaled
MAX_FIRST_TOKENS = 2048  # of a first prompt, likewise
FIRST_ID = 300  # below are special tokens and single bytes


class TraceRow(NamedTuple):
    """One request of the trace, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int


@attrs.frozen
class Turn:
    """What a person writes, and how long an answer is."""

    num_input_tokens: int
    num_output_tokens: int
    pause_seconds: float  # between the answer before and this turn


@attrs.frozen
class Conversation:
    """One chat, from its first turn to its last."""

    number: int
    starts_at: float  # seconds after the benchmark's start
    turns: tuple[Turn, ...]

    @property
    def num_tokens(self) -> int:
        """Length of its context at its end."""
        return sum(turn.num_input_tokens + turn.num_output_tokens for turn in self.turns)

    def input_tokens(self, turn: int, vocab_size: int) -> list[int]:
        """The ids that the person writes: random, and the same whenever asked for."""
        rng = random.Random(f"conversation {self.number}, turn {turn}")
        low = min(FIRST_ID, vocab_size // 2)
        return [rng.randrange(low, vocab_size) for _ in range(self.turns[turn].num_input_tokens)]


def read_trace(path: str) -> list[TraceRow]:
    """Read the rows of an Azure LLM inference trace: TIMESTAMP, ContextTokens, GeneratedTokens.

    Raises:
        ConfigError: there is no such file, or it has other columns.
    """
    try:
        with Path(path).open(newline="") as lines:
            return [
                TraceRow(int(row["ContextTokens"]), int(row["GeneratedTokens"]))
                for row in csv.DictReader(lines)
            ]
    except OSError as error:
        raise ConfigError(f"trace {path} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError) as error:
        raise ConfigError(f"trace {path} lacks ContextTokens or GeneratedTokens: {error}") from error


def make_conversations(
    rows: Sequence[TraceRow],
    count: int,
    per_second: float,
    pause_seconds: float,
    context: int,
    seed: int,
    scale: float = 1.0,
) -> list[Conversation]:
    """Draw conversations; they depend on the arguments alone.

    With the same seed, another rate or pause gives the same turns at other times.

    Args:
        rows: of the trace.
        count: how many.
        per_second: of a Poisson process; 0: all start at once.
        pause_seconds: mean of the pause before each turn but the first.
        context: no conversation is longer than this, in tokens.
        seed: of all draws.
        scale: that every length of the trace is multiplied by, for models with a short context.
    """
    scaled = sorted(
        TraceRow(max(1, round(row.num_prompt_tokens * scale)), max(2, round(row.num_output_tokens * scale)))
        for row in rows
    )
    lengths, times = random.Random(f"lengths {seed}"), random.Random(f"times {seed}")
    conversations = []
    now = 0.0
    for number in range(count):
        now += times.expovariate(1.0) / per_second if per_second else 0.0
        drawn = _draw_turns(scaled, context, scale, lengths)
        turns = tuple(
            Turn(written, answered, pause_seconds * times.expovariate(1.0) if i else 0.0)
            for i, (written, answered) in enumerate(drawn)
        )
        conversations.append(Conversation(number, now, turns))
    return conversations


def _draw_turns(
    rows: list[TraceRow], context: int, scale: float, rng: random.Random
) -> list[tuple[int, int]]:
    """Input and output tokens of each turn of one conversation; `rows` in the order of their prompts."""
    num_turns = 1
    while rng.random() < 1 - 1 / MEAN_TURNS:
        num_turns += 1
    turns: list[tuple[int, int]] = []
    history, longest = 0, max(1, round(MAX_FIRST_TOKENS * scale))
    for _ in range(num_turns):
        low = bisect.bisect_left(rows, (history + 1, 0))
        high = bisect.bisect_left(rows, (history + longest + 1, 0))
        if low == high:
            break
        row = rows[rng.randrange(low, high)]
        if row.num_prompt_tokens + row.num_output_tokens > context:
            break
        turns.append((row.num_prompt_tokens - history, row.num_output_tokens))
        history = row.num_prompt_tokens + row.num_output_tokens
        longest = max(1, round(MAX_NEW_TOKENS * scale))
    return turns or [(max(1, min(context // 2, round(16 * scale))), 2)]
