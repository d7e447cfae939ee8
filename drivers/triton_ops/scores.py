"""Scores in fp64, for rows with penalties or a bias: what their logits become before anything is cut.

Counts of tokens are the device's, a dense row for each space that asks, so that a program reads a logit and
its count side by side. A bias is about few tokens: those are added in the order of the host's sampler.

Sources of the penalties: see drivers/model/reference_sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from attrs import frozen

from drivers.ops.counted import Counted
from drivers.ops.transfer import send
from native.sampling import Draw

__all__ = ["Scores", "score"]

BLOCK = 1024  # logits at once


@frozen(eq=False)
class Scores:
    """Of some rows.

    Attributes:
        values: [num_scored, vocab_size], fp64, contiguous.
        notes: [3, num_scored], int64: the row of logits, its row of counts (-1: none), and what its token is
            noted as there (see `Counted`).
        counts: see `Counted`.
    """

    values: torch.Tensor
    notes: torch.Tensor
    counts: torch.Tensor


# the compiler must not make other code for another number of rows, nor fuse what the host does not
@triton.jit(do_not_specialize=["num_scored"])
def _score(logits, notes, counts, penalties, scores, num_scored, vocab_size, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab_size
    row, place = tl.load(notes + index), tl.load(notes + num_scored + index)
    repetition = tl.load(penalties + index)
    frequency = tl.load(penalties + num_scored + index)
    presence = tl.load(penalties + 2 * num_scored + index)
    raw = tl.load(logits + row * vocab_size + at, mask=inside, other=0.0).to(tl.float64)
    seen = tl.load(counts + place * vocab_size + at, mask=inside & (place >= 0), other=0)
    num_output = seen - 1
    value = tl.where(raw > 0.0, raw / repetition, raw * repetition)
    value -= frequency * num_output.to(tl.float64)
    value -= tl.where(num_output > 0, presence, 0.0)
    tl.store(scores + index * vocab_size + at, tl.where(seen > 0, value, raw), mask=inside)


def score(logits: torch.Tensor, draws: Sequence[Draw | None], counted: Counted) -> Scores | None:
    """The scores of rows whose draws have penalties or a bias; None: none has.

    Args:
        logits: [num_rows, vocab_size], fp32, contiguous.
        draws: one for each row.
        counted: what the penalties are about; the draws' own `seen_ids` do not matter here.
    """
    asking = [(row, draw) for row, draw in enumerate(draws) if draw is not None and draw.is_scored]
    if not asking:
        return None
    vocab_size, device = logits.shape[1], logits.device
    noted = [(row, counted.places[row], counted.notes[row]) for row, _ in asking]
    notes = send(torch.tensor(noted, dtype=torch.int64).T.contiguous(), device)
    numbers = [(draw.repetition_penalty, draw.frequency_penalty, draw.presence_penalty) for _, draw in asking]
    penalties = send(torch.tensor(numbers, dtype=torch.float64).T.contiguous(), device)
    values = torch.empty((len(asking), vocab_size), dtype=torch.float64, device=device)
    counts = counted.counts if len(counted.counts) else notes.new_empty((1, 1), dtype=torch.int32)
    _score[(len(asking), triton.cdiv(vocab_size, BLOCK))](
        logits, notes, counts, penalties, values, len(asking), vocab_size, BLOCK=BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    _add_biases(values, [draw for _, draw in asking])
    return Scores(values, notes, counts)


def _add_biases(scores: torch.Tensor, draws: Sequence[Draw]) -> None:
    """Add each draw's biases to its row; those of one token one after the other."""
    flat, vocab_size = scores.view(-1), scores.shape[1]
    at = np.concatenate([index * vocab_size + draw.bias_ids for index, draw in enumerate(draws)])
    values = np.concatenate([draw.bias_values for draw in draws])
    while len(at):
        _, first = np.unique(at, return_index=True)
        places = send(torch.from_numpy(at[first]), scores.device)
        flat[places] += send(torch.from_numpy(values[first]), scores.device)
        at, values = np.delete(at, first), np.delete(values, first)
