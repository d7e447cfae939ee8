"""How long steps will take: what the driver measured at load, corrected by what its steps have taken since.

A machine that gets busy makes every step slower by about the same factor, and so does what the profile left
out; one factor is kept for all.
"""

from __future__ import annotations

import attrs

from llmos.cost import CostModel, StepWork

LEARNING_RATE = 1 / 8  # of a step as long as the target: most of a change is followed within 16 steps
MAX_SURPRISE = 4.0  # one step counts for no more than so many times longer, or shorter, than it should be
MAX_CORRECTION = 64.0  # in either direction; beyond it the profile says nothing


@attrs.define(eq=False)
class Forecast:
    """Predicts a device's steps.

    Args:
        cost: from the driver's profile.
        target_seconds: the length of steps that predictions are needed for.
    """

    cost: CostModel
    target_seconds: float
    correction: float = attrs.field(default=1.0, init=False)  # seconds taken per second of the cost model

    def step_seconds(self, work: StepWork) -> float:
        """Predict a step."""
        return self.correction * self.cost.step_seconds(work)

    def learn(self, work: StepWork, seconds: float) -> None:
        """Take in what a step has taken: an exponential average of the ratios, in logarithms.

        A short step counts for less, by its share of the target. It tells little of those that come near
        the target, because what it takes beside the model's work is most of it.
        """
        expected = self.step_seconds(work)
        if expected <= 0 or seconds <= 0:
            return
        surprise = min(max(seconds / expected, 1 / MAX_SURPRISE), MAX_SURPRISE)
        weight = LEARNING_RATE * min(1.0, seconds / self.target_seconds)
        corrected = self.correction * surprise**weight
        self.correction = min(max(corrected, 1 / MAX_CORRECTION), MAX_CORRECTION)
