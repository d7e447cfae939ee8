"""Differences and percentiles of the live page against their plain meaning."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shell.gateway.page_sampler import PERCENTILES, difference, percentiles

ROWS = st.dictionaries(st.integers(0, 9), st.integers(0, 3)).map(
    lambda states: {pid: (pid, state) for pid, state in states.items()}
)


@given(before=ROWS, now=ROWS)
def test_a_difference_makes_of_before_what_is_now_and_says_nothing_twice(before: dict, now: dict) -> None:
    """Applied to the rows before it gives the rows now; equal rows are not sent."""
    changed, gone = difference(before, now)
    kept = {pid: row for pid, row in before.items() if pid not in gone}
    assert kept | {row[0]: row for row in changed} == now
    assert not set(changed) & set(before.values())


@given(values=st.lists(st.floats(0, 100)))
def test_percentiles_are_the_least_values_that_so_many_do_not_exceed(values: list[float]) -> None:
    """Nearest rank."""
    expected = [
        min(v for v in values if 100 * sum(other <= v for other in values) >= each * len(values))
        for each in PERCENTILES
        if values
    ]
    assert percentiles(values) == expected
