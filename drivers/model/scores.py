"""What the forward pass hands to the sampler: greedy choices for all rows, logits for those that ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attrs import frozen

from drivers.ops.interface import Ops

__all__ = ["Scores", "score_logits"]


@frozen(eq=False)
class Scores:
    """The sampling rows of a step."""

    best: Sequence[int]  # the lowest id of a largest logit
    num_bad: Sequence[int]  # logits that are not finite
    logits: Sequence[np.ndarray | None]  # [vocab_size] fp32, raw; None: nobody asked


def score_logits(logits: torch.Tensor, ops: Ops, needs_logits: Sequence[bool]) -> Scores:
    """Scores of logits [num_rows, vocab_size] that are all there."""
    if not len(logits):
        return Scores((), (), ())
    best, finite = ops.argmax(logits)
    return Scores(
        best,
        [0 if good else int((~torch.isfinite(row)).sum()) for row, good in zip(logits, finite, strict=True)],
        [
            row.detach().cpu().numpy() if needed else None
            for row, needed in zip(logits, needs_logits, strict=True)
        ],
    )
