"""Timelines: what they say of scripted lives, that they stay small, and that their times add up."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.proc.activity import Activity
from llmos.proc.entry import Kind
from llmos.proc.timeline import MAX_ENTRIES, Timeline


@attrs.frozen
class Other:
    """A process that is named in a timeline."""

    pid: int
    tenant: str


def start(timeline: Timeline, now: float, num_cached: int = 0) -> None:
    """Put a process through the queue at once."""
    timeline.queued(now, 0, None)
    timeline.admitted(now, num_cached)


def test_a_long_process_has_a_short_timeline() -> None:
    """Two thousand chunks and a hundred thousand tokens are one entry each."""
    timeline = Timeline(0.0)
    start(timeline, 1.0)
    for step in range(2000):
        timeline.computes(2.0 + step, 64)
    timeline.decodes(3000.0, 1, is_first=True)
    assert timeline.is_decoding, "the core asks no more, and so writes no more"
    timeline.settle(9000.0, 100_000, 0.0)
    timeline.ended(9000.0, "length")
    assert [
        (entry.kind, entry.at, entry.until, entry.count, entry.num_tokens) for entry in timeline.entries
    ] == [
        (Kind.SPAWNED, 0.0, 0.0, 1, 0),
        (Kind.QUEUED, 1.0, 1.0, 0, 0),
        (Kind.ADMITTED, 1.0, 1.0, 1, 0),
        (Kind.PREFILL, 2.0, 3000.0, 2000, 128_000),
        (Kind.FIRST_TOKEN, 3000.0, 3000.0, 1, 0),
        (Kind.DECODING, 3000.0, 9000.0, 1, 100_000),
        (Kind.ENDED, 9000.0, 9000.0, 1, 0),
    ]
    assert timeline.seconds[Activity.PREFILL] == 2999.0
    assert timeline.seconds[Activity.DECODE] == 6000.0


def test_time_in_the_queue_is_split_by_what_was_short() -> None:
    """Of ten seconds in the queue, memory was short for four; the rest was waiting for a turn."""
    timeline = Timeline(0.0)
    timeline.queued(0.0, 3, ("alice", 12), short_seconds=100.0)
    timeline.settle(6.0, 0, short_seconds=101.0)
    assert timeline.seconds[Activity.MEMORY] == 1.0
    timeline.settle(10.0, 0, short_seconds=104.0)
    timeline.admitted(10.0, 0)
    assert (timeline.seconds[Activity.QUEUED], timeline.seconds[Activity.MEMORY]) == (6.0, 4.0)
    assert timeline.turn.busiest == ("alice", 12)


def test_swapping_is_told_with_bytes_and_times() -> None:
    """Copies in a row are one entry; all that time the process waits for its memory."""
    timeline = Timeline(0.0)
    start(timeline, 0.0)
    timeline.decodes(1.0, 1, is_first=True)
    timeline.settle(2.0, 50, 0.0)
    timeline.preempted(2.0, Other(17, "bob"), "swap", is_fair_share=True)
    timeline.swapped_out(2.0, 1000, "host")
    timeline.queued(2.0, 0, ("bob", 1), is_swapped=True)
    timeline.settle(4.0, 50, 0.0)
    timeline.blocked(4.0, "Swap")
    timeline.swapped_in(4.5, 1000, 0.5, "host")
    timeline.swapped_in(5.0, 24, 0.75, "host")
    timeline.settle(5.0, 50, 0.0)
    timeline.admitted(5.0, 50)
    kinds = [(entry.kind, entry.at, entry.count, entry.num_bytes, entry.text) for entry in timeline.entries]
    assert kinds[5:] == [
        (Kind.PREEMPTED, 2.0, 1, 0, "swap, fair share of bob"),
        (Kind.SWAPPED_OUT, 2.0, 1, 1000, "host"),
        (Kind.QUEUED, 2.0, 0, 0, "bob"),
        (Kind.BLOCKED, 4.0, 1, 0, "Swap"),
        (Kind.SWAPPED_IN, 4.0, 2, 1024, "host"),
        (Kind.ADMITTED, 5.0, 1, 0, ""),
    ]
    assert timeline.seconds[Activity.SWAPPED] == 3.0
    turn = timeline.turn
    assert (turn.num_bytes_out, turn.num_bytes_in, turn.swap_in_seconds) == (1000, 1024, 1.25)


def test_tokens_in_flight_when_it_was_stopped_belong_to_the_run_before() -> None:
    """Two samples come after the stop; they are counted, and the process does not run for them."""
    timeline = Timeline(0.0)
    start(timeline, 0.0)
    timeline.decodes(1.0, 1, is_first=True)
    timeline.settle(2.0, 10, 0.0)
    timeline.stopped(2.0)
    timeline.decodes(2.5, 11, is_first=False)
    timeline.decodes(2.5, 12, is_first=False)
    assert timeline.activity is Activity.STOPPED
    assert not timeline.is_decoding
    (run,) = [entry for entry in timeline.entries if entry.kind is Kind.DECODING]
    assert (run.num_tokens, run.until) == (12, 2.5)
    timeline.queued(3.0, 0, None)
    assert [entry.kind for entry in timeline.entries][-2:] == [Kind.CONTINUED, Kind.QUEUED]


NAMES = (
    "queued", "admitted", "computes", "decodes", "blocked", "stopped",
    "preempted", "out", "in", "lost", "given",
)  # fmt: skip
EVENTS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.floats(0, 10), st.integers(1, 100)),
    max_size=300,
)


@settings(max_examples=300)
@given(events=EVENTS)
def test_it_stays_bounded_and_times_add_up(events: list[tuple[str, float, int]]) -> None:
    """Whatever happens in whatever order: at most MAX_ENTRIES, no two chunks in a row, no second lost."""
    timeline = Timeline(0.0)
    now = 0.0
    num_added = len(timeline.entries)
    num_output = 0
    for name, seconds, number in events:
        now += seconds
        num_before = timeline.num_dropped + len(timeline.entries)
        timeline.settle(now, num_output, now / 2)
        match name:
            case "queued":
                timeline.queued(now, number, ("alice", number), now / 2)
            case "admitted":
                timeline.admitted(now, number)
            case "computes":
                timeline.computes(now, number)
            case "decodes" if not timeline.is_decoding:
                num_output += 1
                timeline.decodes(now, num_output, is_first=timeline.turn.first_token_at is None)
            case "blocked":
                timeline.blocked(now, "Input")
            case "stopped":
                timeline.stopped(now)
            case "preempted":
                timeline.preempted(now, Other(number, "bob"), "recompute", number)
            case "out":
                timeline.swapped_out(now, number, "host")
            case "in":
                timeline.swapped_in(now, number, 0.0, "host")
            case "lost":
                timeline.device_lost(now, number)
            case "given":
                timeline.given(now, number)
        if timeline.is_decoding:
            num_output += number
        num_added += timeline.num_dropped + len(timeline.entries) - num_before
    timeline.settle(now, num_output, now / 2)
    kinds = [entry.kind for entry in timeline.entries]
    assert len(kinds) <= MAX_ENTRIES
    assert len(kinds) + timeline.num_dropped == num_added
    for one, other in itertools.pairwise(kinds):
        assert one is not other or one not in (Kind.PREFILL, Kind.SWAPPED_OUT, Kind.SWAPPED_IN)
    assert sum(timeline.seconds.values()) == pytest.approx(now)
    assert all(spent >= 0 for spent in timeline.seconds.values())
    if not timeline.num_dropped:
        runs = [entry.num_tokens for entry in timeline.entries if entry.kind is Kind.DECODING]
        assert sum(runs) == num_output
