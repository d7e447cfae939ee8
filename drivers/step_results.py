"""What a step has come to, row by row, while it is being put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from llmos.device import MapWork, RowFault, StepDone, TokenLogprobs

__all__ = ["StepResults"]


@attrs.define(eq=False)
class StepResults:
    """What rows have come to, by index. A row that is in none of these has nothing to tell."""

    num_rows: int
    tokens: dict[int, int] = attrs.field(factory=dict)
    logprobs: dict[int, TokenLogprobs | None] = attrs.field(factory=dict)
    mus: dict[int, float] = attrs.field(factory=dict)
    scores: dict[int, tuple[TokenLogprobs, ...]] = attrs.field(factory=dict)
    vectors: dict[int, bytes] = attrs.field(factory=dict)
    faults: dict[int, str] = attrs.field(factory=dict)

    def forget(self, indices: Iterable[int]) -> None:
        """Whatever was found of some rows does not count."""
        found: tuple[dict[int, Any], ...]
        found = (self.tokens, self.logprobs, self.mus, self.scores, self.vectors, self.faults)
        for index in indices:
            for each in found:
                each.pop(index, None)

    def done(self, step_id: int, seconds: float, maps: MapWork | None = None) -> StepDone:
        """The answer to the kernel; `maps` is what was mapped for it."""
        rows = range(self.num_rows)
        return StepDone(
            id=step_id,
            tokens=tuple(map(self.tokens.get, rows)),
            seconds=seconds,
            logprobs=tuple(map(self.logprobs.get, rows)) if any(self.logprobs.values()) else (),
            faults=tuple(RowFault(index, self.faults[index]) for index in sorted(self.faults)),
            mus=tuple(map(self.mus.get, rows)) if self.mus else (),
            scores=tuple(self.scores.get(index, ()) for index in rows) if self.scores else (),
            vectors=tuple(map(self.vectors.get, rows)) if self.vectors else (),
            maps=maps,
        )
