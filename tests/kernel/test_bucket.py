"""Buckets against a plain history of what went through, and the sum of the last minute against a list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.bucket import SLACK, Bucket
from llmos.kernel.recent import LastMinute

STEPS = st.lists(
    st.tuples(st.floats(0, 40, allow_subnormal=False), st.floats(0.01, 150, allow_subnormal=False)),
    max_size=60,
)


@given(per_minute=st.floats(1, 1000), steps=STEPS)
def test_no_window_lets_more_through_than_rate_and_burst(
    per_minute: float, steps: list[tuple[float, float]]
) -> None:
    """Whoever takes only what is free gets at most rate · t + burst in any window, and what it waits for."""
    bucket, now = Bucket(per_minute, 0.0), 0.0
    taken: list[tuple[float, float]] = []
    for pause, amount in steps:
        now += pause
        wait = bucket.wait_seconds(amount, now)
        assert (wait is None) == (amount > per_minute)
        if wait is None:
            continue
        if wait:
            if wait > 0.1:
                assert bucket.wait_seconds(amount, now + 0.9 * wait) > 0
            now += wait
            assert bucket.wait_seconds(amount, now) == 0
        bucket.take(amount, now)
        taken.append((now, amount))
    for i, (start, _) in enumerate(taken):
        total = 0.0
        for end, amount in taken[i:]:
            total += amount
            assert total <= per_minute * (1 + (end - start) / 60) + (len(taken) + 1) * SLACK


@given(per_minute=st.floats(1, 1000), steps=STEPS)
def test_debts_are_paid(per_minute: float, steps: list[tuple[float, float]]) -> None:
    """Taken whatever is there, the level is a plain sum below the burst; what is given back is there."""
    bucket, now, level = Bucket(per_minute, 0.0), 0.0, per_minute
    for pause, amount in steps:
        now += pause
        level = min(per_minute, level + pause * per_minute / 60) - amount
        bucket.take(amount, now)
        assert bucket.level(now) == pytest.approx(level, abs=1e-6)
        bucket.take(amount, now)
        bucket.give_back(amount, now)
        assert bucket.level(now) == pytest.approx(level, abs=1e-6)


@given(steps=STEPS)
def test_the_last_minute_is_the_last_minute(steps: list[tuple[float, float]]) -> None:
    """The sum over this second and the 59 before, against a list of all that happened."""
    recent, now = LastMinute(), 0.0
    happened: list[tuple[int, float]] = []
    for pause, amount in steps:
        now += pause
        recent.add(amount, now)
        happened.append((int(now), amount))
        expected = sum(amount for second, amount in happened if int(now) - second < 60)
        assert recent.total(now) == pytest.approx(expected)
        assert LastMinute().total(now) == 0


@given(first=st.floats(1, 1000), second=st.floats(1, 1000), steps=STEPS)
def test_what_was_taken_stays_taken_at_another_rate(
    first: float, second: float, steps: list[tuple[float, float]]
) -> None:
    """A change gives nothing and takes nothing; from then on the level is the sum at the new rate."""
    bucket, now = Bucket(first, 0.0), 0.0
    for pause, amount in steps:
        now += pause
        bucket.take(amount, now)
    used = first - bucket.level(now)
    bucket.change(second, now)
    assert second - bucket.level(now) == pytest.approx(used, abs=1e-6)
    assert bucket.level(now + 60 * max(1.0, used) / second) == pytest.approx(second, abs=1e-6)
