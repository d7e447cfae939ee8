"""Mirostat, and what is told of a token besides itself: by the scores that it was drawn from, on the device.

Sources of mirostat: see drivers/model/reference_cuts.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from drivers.ops.drawn import LOGPROB, MU, NUM_FIXED, NUM_LEFT, Told
from drivers.ops.transfer import send
from drivers.triton_ops.scores import Scores
from native.sampling import Draw

__all__ = ["list_mus", "tell"]

BLOCK = 1024  # scores at once
TOP, LOG_TOTAL, NUM_SUMS = range(NUM_FIXED, NUM_FIXED + 3)  # columns behind those of `Told.numbers`
COLUMNS = tuple(map(tl.constexpr, (LOGPROB, MU, NUM_LEFT, TOP, LOG_TOTAL, NUM_SUMS)))
TO_LOGPROB, TO_MU, TO_NUM_LEFT, TO_TOP, TO_LOG_TOTAL, STRIDE = COLUMNS
LOG2_E = tl.constexpr(math.log2(math.e))


# the compiler must not make other code for another number of rows
@triton.jit(do_not_specialize=["num_told"])
def _tell(scores, notes, ids, num_bad, targets, mus, out, num_told, vocab_size, BLOCK: tl.constexpr):
    index = tl.program_id(0)
    scores += tl.load(notes + index) * vocab_size
    row = tl.load(notes + num_told + index)
    of_mirostat = tl.load(notes + 2 * num_told + index)
    out += index * STRIDE
    top = tl.full((), -float("inf"), tl.float64)
    for begin in range(0, vocab_size, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        x = tl.load(scores + at, mask=at < vocab_size, other=-float("inf"))
        top = tl.maximum(top, tl.max(x, axis=0))
    top = tl.where(top == -float("inf"), 0.0, top)  # nothing is allowed
    total = tl.zeros((), tl.float64)
    num_left = tl.zeros((), tl.float64)
    for begin in range(0, vocab_size, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        weights = tl.exp(tl.load(scores + at, mask=at < vocab_size, other=-float("inf")) - top)
        total += tl.sum(weights, axis=0)
        num_left += tl.sum((weights > 0.0).to(tl.float64), axis=0)
    log_total = tl.log(tl.where(total > 0.0, total, 1.0))
    token = tl.load(ids + row)
    is_drawn = (token >= 0) & (tl.load(num_bad + row) == 0)
    logprob = tl.load(scores + token, mask=is_drawn, other=0.0) - top - log_total
    mu = tl.load(mus + of_mirostat, mask=of_mirostat >= 0, other=0.0)
    tau = tl.load(targets + index)
    eta = tl.load(targets + num_told + index)
    after = mu - eta * (-logprob * LOG2_E - tau)
    tl.store(out + TO_LOGPROB, logprob)
    tl.store(out + TO_MU, tl.where(is_drawn, after, mu))
    tl.store(out + TO_NUM_LEFT, num_left)
    tl.store(out + TO_TOP, top)
    tl.store(out + TO_LOG_TOTAL, log_total)


def list_mus(draws: Sequence[Draw | None], device: torch.device) -> torch.Tensor | None:
    """What the draws by mirostat themselves say of mu, in their order, fp64; None: there are none."""
    mus = [draw.mirostat.mu for draw in draws if draw is not None and draw.mirostat is not None]
    return send(torch.tensor(mus, dtype=torch.float64), device) if mus else None


def tell(
    scores: Scores,
    draws: Sequence[Draw | None],
    ids: torch.Tensor,
    num_bad: torch.Tensor,
    mus: torch.Tensor | None,
) -> Told | None:
    """Tell of rows whose draws have more than a token; None: there are none.

    Args:
        scores: that the tokens were drawn from.
        draws: one for each row of logits.
        ids: the tokens drawn, [num_rows], int64.
        num_bad: logits that are not finite, likewise.
        mus: of the draws by mirostat, in their order, fp64; None: there are none.
    """
    notes: list[tuple[int, int, int]] = []  # of each row: its scores, itself, its mu
    targets, asking = [], []
    place = num_mirostat = 0
    for row, draw in enumerate(draws):
        if draw is None or not draw.has_scores:
            continue
        if draw.has_more:
            notes.append((place, row, -1 if draw.mirostat is None else num_mirostat))
            targets.append((0.0, 0.0) if draw.mirostat is None else (draw.mirostat.tau, draw.mirostat.eta))
            asking.append(draw)
        num_mirostat += draw.mirostat is not None
        place += 1
    if not notes:
        return None
    values, vocab_size = scores.values, scores.values.shape[1]
    places = send(torch.tensor(notes, dtype=torch.int64).T.contiguous(), values.device)
    sums = values.new_empty((len(notes), NUM_SUMS))
    _tell[(len(notes),)](
        values, places, ids, num_bad,
        send(torch.tensor(targets, dtype=torch.float64).T.contiguous(), values.device),
        sums if mus is None else mus, sums, len(notes), vocab_size, BLOCK=BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    num_top = min(vocab_size, max(draw.num_top or 0 for draw in asking))
    numbers = values.new_empty((len(notes), NUM_FIXED + 2 * num_top))
    numbers[:, :NUM_FIXED] = sums[:, :NUM_FIXED]
    if num_top:
        ordered, order = torch.sort(values[places[0]], dim=1, descending=True, stable=True)
        numbers[:, NUM_FIXED : NUM_FIXED + num_top] = order[:, :num_top]
        best = ordered[:, :num_top] - sums[:, TOP, None] - sums[:, LOG_TOTAL, None]
        numbers[:, NUM_FIXED + num_top :] = best
    return Told(tuple(row for _, row, _ in notes), num_top, numbers)
