"""What steps and copies take: the cost models that a driver fits, and everybody who decides by cost reads."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class StepWork(NamedTuple):
    """What a step holds, as far as its time depends on it."""

    num_tokens: int = 0  # computed
    num_rows: int = 0
    num_context_tokens: int = 0  # keys read, summed over rows
    num_pairs: int = 0  # of a token computed and a key that it sees

    def with_row(self, start: int, num_tokens: int) -> StepWork:
        """The same and one more row, whose first token is at position `start`."""
        return StepWork(
            self.num_tokens + num_tokens,
            self.num_rows + 1,
            self.num_context_tokens + start + num_tokens,
            self.num_pairs + count_pairs(start, num_tokens),
        )


def count_pairs(start: int, num_tokens: int) -> int:
    """Keys that the tokens at `start` and behind it see, each those up to itself."""
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2


class CostModel(msgspec.Struct, frozen=True):
    """Seconds that one step takes: a linear fit over what a step holds.

    No coefficient is negative: a step that holds more never takes less.
    """

    base: float = 0.0  # above all, reading the weights
    per_token: float = 0.0
    per_row: float = 0.0
    per_context_token: float = 0.0
    per_pair: float = 0.0

    def step_seconds(self, work: StepWork) -> float:
        """Predicted time of a step."""
        return (
            self.base
            + self.per_token * work.num_tokens
            + self.per_row * work.num_rows
            + self.per_context_token * work.num_context_tokens
            + self.per_pair * work.num_pairs
        )

    def knee_tokens(self, chunk: int) -> float | None:
        """Position from which on attention over the context takes most of a prompt token's time.

        Args:
            chunk: prompt tokens of a step, which share its base; at least 1.

        Returns:
            None when the fit saw no cost of context.
        """
        rest = self.per_token + (self.base + self.per_row) / chunk
        return rest / self.per_pair if self.per_pair > 0 and rest > 0 else None

    def scaled(self, factor: float) -> CostModel:
        """The model of a device that takes so many times longer."""
        return CostModel(*(factor * coefficient for coefficient in msgspec.structs.astuple(self)))


class CopyCost(msgspec.Struct, frozen=True):
    """Seconds that a copy between two tiers takes, in one direction, while steps run."""

    base: float  # of each copy, however small
    bytes_per_second: float

    def seconds(self, num_bytes: int) -> float:
        """Predicted time of one copy."""
        return self.base + num_bytes / self.bytes_per_second


class Profile(msgspec.Struct, frozen=True):
    """What a driver has measured of its loaded model, and of its tiers of memory."""

    cost: CostModel
    error: float  # the largest there was between a measured step and the fit, as a share of the step
    num_steps: int  # measured
    seconds: float  # that this took
    host: CopyCost | None = None  # between the device and the host area; None: there is no such area
    disk: CopyCost | None = None  # between the device and the swap file
