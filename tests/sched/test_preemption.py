"""Swap or recompute, wait or go on: choices from costs, against arithmetic done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.cost import CopyCost, CostModel, Profile, StepWork
from llmos.mm.eviction import DEFAULT_KNEE_TOKENS, CostAware, LeastRecentlyUsed, make_eviction
from llmos.sched.forecast import Forecast
from llmos.sched.preemption import PreemptionCosts

COST = CostModel(base=0.01, per_token=0.001)
HOST = CopyCost(base=0.001, bytes_per_second=1e6)


def costs(preempt: str = "auto", switching: str = "auto", host: CopyCost | None = HOST) -> PreemptionCosts:
    """A device that takes 10 ms a step and 1 ms a token, and copies a megabyte a second."""
    profile = Profile(COST, 0.0, 0, 0.0, host=host)
    return PreemptionCosts(preempt, switching, 100, Forecast(COST, 0.1), profile)


def test_recomputing_takes_its_chunks() -> None:
    """250 tokens in chunks of 100: three steps and 250 tokens."""
    assert costs().recompute_seconds(0, 250) == pytest.approx(0.28)
    assert costs().recompute_seconds(200, 250) == pytest.approx(0.06)


@given(num_tokens=st.integers(1, 2000), bytes_out=st.integers(0, 10**6), bytes_in=st.integers(0, 10**6))
def test_the_cheaper_way_is_taken(num_tokens: int, bytes_out: int, bytes_in: int) -> None:
    """There and back against computing it all, by the same two models that anybody can add up."""
    there_and_back = 0.002 + (bytes_out + bytes_in) / 1e6
    again = 0.01 * -(-num_tokens // 100) + 0.001 * num_tokens
    chosen = costs().prefers_swap(num_tokens, bytes_out, bytes_in, "host")
    assert chosen == (there_and_back <= costs().recompute_seconds(0, num_tokens))
    if abs(there_and_back - again) > 1e-9:
        assert chosen == (there_and_back < again)


def test_the_operator_settles_it() -> None:
    """preempt = swap or recompute is obeyed at any cost."""
    assert costs("swap").prefers_swap(1, 10**9, 10**9, "host")
    assert not costs("recompute").prefers_swap(10**6, 1, 1, "host")


def test_what_is_not_known_is_swapped() -> None:
    """Without a profile of a tier there is nothing to weigh, and memory is not thrown away."""
    assert costs(host=None).prefers_swap(1, 10**9, 10**9, "host")
    assert costs().prefers_swap(1, 10**9, 10**9, "disk")


@given(start=st.integers(0, 500), num_tokens=st.integers(1, 100), num_running=st.integers(0, 40))
def test_a_tail_is_computed_again_where_few_are_held_up(
    start: int, num_tokens: int, num_running: int
) -> None:
    """One waits for two steps of 11 ms; all who run wait 1 ms longer for each token but the first."""
    lost, saved = (num_tokens - 1) * 1 * max(1, num_running), 2 * 11
    if lost != saved:
        assert costs().prefers_to_drop(start, start + num_tokens, num_running) == (lost < saved)
    assert not costs("swap").prefers_to_drop(start, start + num_tokens, num_running)


def test_waiting_is_worth_it_for_many_who_arrive_soon() -> None:
    """One runs, in steps of 11 ms; four arrive in 3 ms: waiting costs 3 ms of one, and saves 8 ms of four."""
    one = StepWork().with_row(10, 1)
    assert costs().waits({"host": 2000}, 4, one)
    many = one
    for _ in range(40):
        many = many.with_row(10, 1)
    assert not costs().waits({"host": 2000}, 1, many)
    assert not costs().waits({"host": 100_000}, 4, one)  # longer than a step: they miss it anyway
    assert not costs().waits({}, 0, one)
    assert costs(switching="sync").waits({"host": 100_000}, 1, many)
    assert not costs(switching="async").waits({"host": 2000}, 4, one)


def test_the_knee_comes_from_the_profile() -> None:
    """Where 500 pairs cost what a token of a chunk of 10 does, a page there is worth twice one at 0."""
    cost = CostModel(base=0.01, per_token=0.004, per_pair=1e-5)
    knee = cost.knee_tokens(10)
    assert knee == pytest.approx(500)
    eviction = make_eviction("cost", knee)
    assert eviction.value(500, 16, 1) == pytest.approx(2 * eviction.value(0, 16, 1))
    assert COST.knee_tokens(10) is None
    unknown = make_eviction("cost", None)
    assert isinstance(unknown, CostAware)
    assert unknown.knee_tokens == DEFAULT_KNEE_TOKENS
    assert isinstance(make_eviction("lru", knee), LeastRecentlyUsed)
