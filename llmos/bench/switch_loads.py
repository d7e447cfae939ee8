"""The loads that `llmos bench switch` puts on the simulated device, and what it compares at each.

The knee is where, with the synchronous block swap, half of all people wait twice as long for their first
token as under the light load. It takes some hundred conversations until as many end as begin: with few of
them each load is lighter than its name.
"""

from __future__ import annotations

import math

import attrs

from llmos.bench.switch_variants import ABLATION, AUTO, BLOCKS, FCFS, GROUPS, RECOMPUTE

PAUSE_SECONDS = 10.0  # mean, that a person takes to read and write


@attrs.frozen
class Load:
    """How fast conversations come.

    Args:
        name: in the report.
        per_second: conversations; 0: all are there at once, and nobody pauses.
        rerank_steps: steps between two draws of everybody's priority.
        variants: that are compared.
    """

    name: str
    per_second: float
    rerank_steps: int
    variants: tuple[str, ...]

    @property
    def most_seconds(self) -> float:
        """Of the virtual clock, for each conversation: twice the time that they take to begin.

        A way that does not keep up is stopped then, and whoever waits has waited for so long at least.
        """
        return 2 / self.per_second if self.per_second else math.inf

    @property
    def pause_seconds(self) -> float:
        """Mean of the pause between turns."""
        return PAUSE_SECONDS if self.per_second else 0.0


LOADS = (
    Load("light", 0.12, 25, (BLOCKS, AUTO)),
    Load("knee", 0.35, 25, (FCFS, RECOMPUTE, *ABLATION, AUTO)),
    Load("above", 0.42, 25, (*ABLATION, AUTO)),
    Load("backlog", 0.0, 25, (BLOCKS, GROUPS, AUTO)),
    Load("backlog re-ranked often", 0.0, 10, (BLOCKS, GROUPS, AUTO)),
)
