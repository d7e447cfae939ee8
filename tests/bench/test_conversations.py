"""Conversations for benchmarks: fixed, within the model's context, with the trace's lengths."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.bench.conversations import (
    MEAN_TURNS,
    Conversation,
    TraceRow,
    make_conversations,
    read_trace,
)
from llmos.bench.switch_real import mean_live_tokens
from llmos.config import ConfigError

ROWS = [TraceRow(prompt, 1 + prompt % 97) for prompt in range(1, 6000, 7)]


@given(
    rows=st.lists(st.builds(TraceRow, st.integers(1, 3000), st.integers(1, 500)), min_size=1, max_size=40),
    context=st.integers(64, 4096),
    scale=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
)
def test_they_fit_the_context(rows: list[TraceRow], context: int, scale: float, seed: int) -> None:
    """Whatever the trace holds: somebody writes, somebody answers, and the context is kept."""
    for conversation in make_conversations(rows, 5, 2.0, 1.0, context, seed, scale):
        assert conversation.turns
        assert all(turn.num_input_tokens >= 1 for turn in conversation.turns)
        assert all(turn.num_output_tokens >= 2 for turn in conversation.turns)
        assert conversation.num_tokens <= context


def test_the_same_turns_at_another_rate() -> None:
    """Rate and pauses change times, and times alone; without a rate all start at once."""
    slow = make_conversations(ROWS, 50, 1.0, 10.0, 8192, 3)
    fast = make_conversations(ROWS, 50, 2.0, 5.0, 8192, 3)
    assert slow == make_conversations(ROWS, 50, 1.0, 10.0, 8192, 3)
    for one, other in zip(slow, fast, strict=True):
        assert one.starts_at == pytest.approx(2 * other.starts_at)
        for a, b in zip(one.turns, other.turns, strict=True):
            assert (a.num_input_tokens, a.num_output_tokens) == (b.num_input_tokens, b.num_output_tokens)
            assert a.pause_seconds == pytest.approx(2 * b.pause_seconds)
    assert {c.starts_at for c in make_conversations(ROWS, 9, 0.0, 0.0, 8192, 3)} == {0.0}
    assert slow != make_conversations(ROWS, 50, 1.0, 10.0, 8192, 4)


def test_means() -> None:
    """Turns and starts have the means that were asked for."""
    conversations = make_conversations(ROWS, 2000, 4.0, 10.0, 100_000, 1)
    assert statistics.mean(len(c.turns) for c in conversations) == pytest.approx(MEAN_TURNS, rel=0.08)
    assert conversations[-1].starts_at == pytest.approx(500, rel=0.1)
    pauses = [turn.pause_seconds for c in conversations for turn in c.turns[1:]]
    assert statistics.mean(pauses) == pytest.approx(10, rel=0.05)


def test_words_are_fixed() -> None:
    """What is written depends on conversation and turn alone, and no two share a beginning."""
    first, second = make_conversations(ROWS, 2, 0.0, 0.0, 8192, 1)
    assert first.input_tokens(0, 512) == first.input_tokens(0, 512)
    assert len(first.input_tokens(0, 512)) == first.turns[0].num_input_tokens
    assert first.input_tokens(0, 512)[:8] != second.input_tokens(0, 512)[:8]
    assert all(256 <= token < 512 for token in first.input_tokens(0, 512))


def test_a_trace_is_read_or_refused_by_name(tmp_path: Path) -> None:
    """The Azure form is read; a missing file and other columns are named."""
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    assert read_trace(str(path)) == [TraceRow(374, 44)]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="ContextTokens"):
        read_trace(str(path))
    with pytest.raises(ConfigError, match=r"missing\.csv"):
        read_trace(str(tmp_path / "missing.csv"))


def held_at(conversation: Conversation, now: float, seconds_per_token: float) -> int:
    """The context of a conversation at one moment, in tokens; 0 when it is over."""
    at, length = conversation.starts_at, 0
    for turn in conversation.turns:
        at += turn.pause_seconds
        if now < at:
            return length
        length += turn.num_input_tokens + turn.num_output_tokens
        at += turn.num_output_tokens * seconds_per_token
        if now < at:
            return length
    return 0


@given(seed=st.integers(0, 100), seconds_per_token=st.floats(0.001, 0.1))
def test_live_tokens_are_those_of_a_clock_that_ticks(seed: int, seconds_per_token: float) -> None:
    """The average over time is what one gets by looking every now and then."""
    conversations = make_conversations(ROWS, 8, 0.1, 5.0, 8192, seed)
    until = max(c.starts_at for c in conversations)
    times = [until * (look + 0.5) / 2000 for look in range(2000)]
    seen = statistics.mean(sum(held_at(c, now, seconds_per_token) for c in conversations) for now in times)
    assert mean_live_tokens(conversations, seconds_per_token) == pytest.approx(seen, rel=0.01, abs=20)
