"""The results of draws, as a device has them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from attrs import frozen

from native.sampling import Choice, Draw

__all__ = ["LOGPROB", "MU", "NUM_FIXED", "NUM_LEFT", "Drawn", "Told", "read_told"]

LOGPROB, MU, NUM_LEFT, NUM_FIXED = range(4)  # columns of `Told.numbers`, and how many come before the best


@frozen(eq=False)
class Told:
    """What is told of some rows besides their tokens.

    Attributes:
        rows: of logits.
        num_top: alternatives, at most.
        numbers: [len(rows), NUM_FIXED + 2 num_top], fp64: of what the token was drawn from, after all cuts,
            its log-probability; mu of the next draw by mirostat; how many tokens are left; then ids of the
            most likely ones, the largest first, the lowest id first among equals, and log-probabilities.
    """

    rows: tuple[int, ...]
    num_top: int
    numbers: torch.Tensor


class Drawn(NamedTuple):
    """Of rows of logits.

    Attributes:
        ids: [num_rows], int64; -1 where no token is allowed.
        num_bad: [num_rows], int64: logits that are not finite. Where some are not, the id means nothing, but
            is one of the vocabulary.
        told: of the rows whose draws have more than a token, in order; None: there are none.
    """

    ids: torch.Tensor
    num_bad: torch.Tensor
    told: Told | None = None


def read_told(numbers: npt.NDArray[np.float64], token: int, draw: Draw) -> Choice:
    """The choice of a token that is one of the vocabulary, by its row of `Told.numbers`, on the host."""
    mu = None if draw.mirostat is None else float(numbers[MU])
    if draw.num_top is None:
        return Choice(token, mu=mu)
    best, logprobs = numbers[NUM_FIXED:].reshape(2, -1)
    count = min(draw.num_top, int(numbers[NUM_LEFT]), len(best))
    top_ids = tuple(map(int, best[:count]))
    return Choice(token, 0, float(numbers[LOGPROB]), top_ids, tuple(logprobs[:count].tolist()), mu=mu)
