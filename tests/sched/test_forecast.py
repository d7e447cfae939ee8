"""The forecast follows what steps take, and a few strange ones do not lead it astray."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.cost import CostModel, StepWork
from llmos.sched.forecast import MAX_CORRECTION, Forecast

COST = CostModel(base=0.02, per_token=1e-3, per_row=1e-4)
WORK = StepWork().with_row(0, 100)


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_steps_that_take_longer_are_expected_to(factor: float) -> None:
    """After 40 steps at another speed, and as long as the target, predictions are within 5 per cent."""
    forecast = Forecast(COST, target_seconds=0.03)
    taken = factor * COST.step_seconds(WORK)
    for _ in range(40):
        forecast.learn(WORK, taken)
    assert forecast.step_seconds(WORK) == pytest.approx(taken, rel=0.05)


def test_one_pause_changes_little() -> None:
    """A single step a thousand times too long raises predictions by a fifth."""
    forecast = Forecast(COST, target_seconds=0.1)
    forecast.learn(WORK, 1000 * COST.step_seconds(WORK))
    assert 1.1 < forecast.correction < 1.2


def test_short_steps_count_for_less() -> None:
    """What a step takes beside the model's work does not spoil the forecast of long ones."""
    forecast = Forecast(CostModel(per_token=1e-5), target_seconds=0.1)
    for _ in range(20):
        forecast.learn(StepWork().with_row(0, 10), 3 * 1e-4)
    assert forecast.correction < 1.01


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1e6, allow_nan=False)), max_size=200))
def test_corrections_stay_within_bounds(steps: list[tuple[int, float]]) -> None:
    """Whatever a driver says of its steps, predictions are positive and finite, and grow with the work."""
    forecast = Forecast(COST, target_seconds=0.1)
    for num_tokens, seconds in steps:
        forecast.learn(StepWork().with_row(0, num_tokens), seconds)
    assert 1 / MAX_CORRECTION <= forecast.correction <= MAX_CORRECTION
    assert 0 < forecast.step_seconds(WORK) < forecast.step_seconds(WORK.with_row(10, 10))


def test_steps_without_cost_teach_nothing() -> None:
    """A device that takes no time, or claims so, leaves the forecast as it is."""
    forecast = Forecast(CostModel(), target_seconds=0.1)
    forecast.learn(WORK, 1.0)
    assert forecast.correction == 1.0
    forecast = Forecast(COST, target_seconds=0.1)
    forecast.learn(WORK, 0.0)
    assert forecast.correction == 1.0
