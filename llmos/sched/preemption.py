"""How a process loses its memory: copied to a lower tier, or to be computed again. From costs to a choice."""

from __future__ import annotations

from typing import Literal

import attrs

from llmos.cost import CopyCost, Profile, StepWork
from llmos.device import Tier
from llmos.sched.forecast import Forecast

Preempt = Literal["auto", "swap", "recompute"]
Switching = Literal["auto", "async", "sync"]


@attrs.define(eq=False)
class PreemptionCosts:
    """What it takes to bring memory back, by what the driver has measured.

    Args:
        preempt: "auto" takes the cheaper way for each process at each time; the others settle it.
        switching: "async": steps go on while copies are under way; "sync": they wait for them; "auto":
            whichever loses fewer tokens.
        max_step_tokens: that a prompt is computed in chunks of.
    """

    preempt: Preempt = "auto"
    switching: Switching = "auto"
    max_step_tokens: int = 512
    forecast: Forecast | None = None  # None: how long steps take is not known
    profile: Profile | None = None

    @property
    def is_sync(self) -> bool:
        """Do steps and copies always take turns?"""
        return self.switching == "sync"

    def prefers_swap(self, num_tokens: int, bytes_out: int, bytes_in: int, tier: Tier) -> bool:
        """Should a process be sent down, rather than computed again later?

        Args:
            num_tokens: that it would have to compute.
            bytes_out: to be sent now: what has no clean copy.
            bytes_in: to be brought back.
            tier: where to.
        """
        if self.preempt != "auto":
            return self.preempt == "swap"
        copy = self._copy_cost(tier)
        if copy is None or self.forecast is None:
            return True
        return copy.seconds(bytes_out) + copy.seconds(bytes_in) <= self.recompute_seconds(0, num_tokens)

    def prefers_swap_in(self, start: int, end: int, num_bytes: int, tier: Tier) -> bool:
        """Should positions [start, end) be brought back, now that there is a copy of them?"""
        copy = self._copy_cost(tier)
        if self.preempt != "auto" or copy is None or self.forecast is None:
            return True
        return copy.seconds(num_bytes) <= self.recompute_seconds(start, end)

    def prefers_to_drop(self, start: int, end: int, num_running: int) -> bool:
        """Should positions [start, end), which have no clean copy, be computed again, so that nobody waits?

        Frames that need no copy are free at once; a copy takes the steps in flight to begin, and one to end,
        which one process waits for. Whoever runs when the positions are computed again takes so much longer.

        Args:
            start: what lies before it has clean copies.
            end: of what is known.
            num_running: processes that share the device.
        """
        if self.preempt != "auto" or self.forecast is None:
            return False
        step = self.forecast.step_seconds(StepWork().with_row(start, 1))
        longer = self.forecast.step_seconds(StepWork().with_row(start, end - start))
        return (longer - step) * max(1, num_running) <= 2 * step

    def recompute_seconds(self, start: int, end: int) -> float:
        """Time to compute positions [start, end) in chunks, on a device that does nothing else."""
        assert self.forecast is not None
        seconds = 0.0
        for first in range(start, end, self.max_step_tokens):
            work = StepWork().with_row(first, min(self.max_step_tokens, end - first))
            seconds += self.forecast.step_seconds(work)
        return seconds

    def waits(self, arriving_bytes: dict[Tier, int], num_arriving: int, running: StepWork) -> bool:
        """Should the next step wait for the copies that are under way?

        It should when the tokens that those who run lose by waiting are fewer than those that the arriving
        ones gain by not missing that step (FastSwitch's adaptive rule).

        Args:
            arriving_bytes: on their way to the device, by tier.
            num_arriving: processes that they belong to.
            running: the step of those who run.
        """
        if self.switching == "sync":
            return True
        if self.switching == "async" or not num_arriving or self.forecast is None:
            return False
        wait = 0.0
        for tier, num_bytes in arriving_bytes.items():
            if (copy := self._copy_cost(tier)) is None:
                return False
            wait += copy.seconds(num_bytes)
        step = self.forecast.step_seconds(running)
        return wait * running.num_rows < num_arriving * (step - wait)

    def _copy_cost(self, tier: Tier) -> CopyCost | None:
        if self.profile is None:
            return None
        return self.profile.host if tier == "host" else self.profile.disk
