"""RestartBudget agrees with a list of all deaths."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from llmos.ipc.restart_budget import RestartBudget

MAX_RESTARTS, WINDOW_SECONDS = 3, 10.0


@given(st.lists(st.sampled_from([0.0, 1.0, 4.0, 9.0, 10.0, 30.0]), max_size=12))
def test_it_counts_the_restarts_of_the_last_window(gaps: list[float]) -> None:
    """What was refused counts for nothing; pauses double from restart to restart, up to the longest."""

    async def die_again_and_again() -> None:
        budget = RestartBudget(MAX_RESTARTS, WINDOW_SECONDS, pause_seconds=0.5, max_pause_seconds=1.5)
        restarts: list[float] = []
        for gap in gaps:
            await trio.sleep(gap)
            now = trio.current_time()
            num_recent = sum(now - time < WINDOW_SECONDS for time in restarts)
            if num_recent == MAX_RESTARTS:
                assert budget.take() is None
            else:
                assert budget.take() == [0.5, 1.0, 1.5][num_recent]
                restarts.append(now)

    trio.run(die_again_and_again, clock=MockClock(autojump_threshold=0))
