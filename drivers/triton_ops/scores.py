"""Scores in fp64, for rows with penalties, a bias, or cuts in an order of their own.

Counts of tokens are the device's, a dense row for each space that asks, so that a program reads a logit and
its count side by side. A bias is about few tokens: those are added in the order of the host's sampler.

Sources of the penalties: see drivers/model/reference_sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from attrs import frozen

from drivers.ops.counted import Counted
from drivers.ops.transfer import send
from drivers.triton_ops.cuts import apply_cuts
from native.sampling import Draw

__all__ = ["Scores", "penalise", "score", "score_numbers"]

BLOCK = 1024  # logits at once


@frozen(eq=False)
class Scores:
    """Of some rows.

    Attributes:
        values: [num_scored, vocab_size], fp64, contiguous.
        notes: [4, num_scored], int64: the row of logits (-1: nobody's), its row of counts (-1: none), what
            its token is noted as there (see `Counted`), and its place among the limits (-1: none).
        counts: see `Counted`.
    """

    values: torch.Tensor
    notes: torch.Tensor
    counts: torch.Tensor


# the compiler must not make other code for another number of rows, nor fuse what the host does not
@triton.jit(do_not_specialize=["num_scored"])
def _score(
    logits, notes, counts, limits, penalties, scores, num_scored, vocab_size, limits_width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab_size
    row, place = tl.load(notes + index), tl.load(notes + num_scored + index)
    repetition = tl.load(penalties + index)
    frequency = tl.load(penalties + num_scored + index)
    presence = tl.load(penalties + 2 * num_scored + index)
    inside &= row >= 0
    raw = tl.load(logits + row * vocab_size + at, mask=inside, other=0.0).to(tl.float64)
    seen = tl.load(counts + place * vocab_size + at, mask=inside & (place >= 0), other=0)
    num_output = seen - 1
    value = tl.where(raw > 0.0, raw / repetition, raw * repetition)
    value -= frequency * num_output.to(tl.float64)
    value -= tl.where(num_output > 0, presence, 0.0)
    limit = tl.load(notes + 3 * num_scored + index)
    bits = tl.load(limits + limit * limits_width + at // 8, mask=inside & (limit >= 0), other=255).to(
        tl.int32
    )
    is_allowed = ((bits >> (at % 8)) & 1) == 1
    value = tl.where(is_allowed, tl.where(seen > 0, value, raw), -float("inf"))
    tl.store(scores + index * vocab_size + at, value, mask=inside)


def score(
    logits: torch.Tensor,
    draws: Sequence[Draw | None],
    counted: Counted,
    limits: torch.Tensor | None = None,
    mus: torch.Tensor | None = None,
) -> Scores | None:
    """The scores of rows whose draws have some, cuts of their own made; None: none has.

    Args:
        logits: [num_rows, vocab_size], fp32, contiguous.
        draws: one for each row.
        counted: what the penalties are about; the draws' own `seen_ids` do not matter here.
        limits: a row of bits for each draw that has some (see sample.py); None: none has.
        mus: of the draws by mirostat, in their order, fp64; None: there are none.
    """
    asking = [draw for draw in draws if draw is not None and draw.has_scores]
    if not asking:
        return None
    notes, penalties = (send(torch.from_numpy(each), logits.device) for each in score_numbers(draws, counted))
    counts = counted.counts if len(counted.counts) else notes.new_empty((1, 1), dtype=torch.int32)
    scores = penalise(logits, notes, penalties, counts, limits)
    _add_biases(scores.values, asking)
    apply_cuts(scores.values, asking, mus)
    return scores


def score_numbers(
    draws: Sequence[Draw | None], counted: Counted
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The notes, [4, num_scored], and the penalties, [3, num_scored], of rows whose draws have scores."""
    notes: list[tuple[int, int, int, int]] = []
    penalties: list[tuple[float, float, float]] = []
    num_limited = 0
    for row, draw in enumerate(draws):
        if draw is None:
            continue
        num_limited += draw.has_limits
        if draw.has_scores:
            limit = num_limited - 1 if draw.has_limits else -1
            notes.append((row, counted.places[row], counted.notes[row], limit))
            penalties.append((draw.repetition_penalty, draw.frequency_penalty, draw.presence_penalty))
    return (
        np.ascontiguousarray(np.array(notes, dtype=np.int64).T),
        np.ascontiguousarray(np.array(penalties, dtype=np.float64).T),
    )


def penalise(
    logits: torch.Tensor,
    notes: torch.Tensor,
    penalties: torch.Tensor,
    counts: torch.Tensor,
    limits: torch.Tensor | None = None,
) -> Scores:
    """Scores by penalties and limits alone.

    Args:
        logits: [num_rows, vocab_size], fp32, contiguous.
        notes: see `Scores`.
        penalties: [3, num_scored], fp64: repetition, frequency, presence.
        counts: see `Counted`; not empty.
        limits: see `score`.
    """
    num_scored, vocab_size = notes.shape[1], logits.shape[1]
    values = torch.empty((num_scored, vocab_size), dtype=torch.float64, device=logits.device)
    if limits is None:
        limits = notes.new_empty((1, 1), dtype=torch.uint8)  # nobody looks there
    _score[(num_scored, triton.cdiv(vocab_size, BLOCK))](
        logits, notes, counts, limits, penalties, values, num_scored, vocab_size, limits.shape[1],
        BLOCK=BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
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
