"""From logits to tokens on the device: one program a row, in the cuts and arithmetic of the host's sampler.

A row that has penalties, a bias or cuts in another order is drawn from its scores, in fp64 as on the host;
others are drawn from their logits.

The tokens that top-k and top-p keep are the first few by score, largest first, the lowest id first among
equals. So a cut is a score, and how many of those that equal it are kept. Scores are searched for digit by
digit, 4 bits at a time: a pass over the row counts, or weighs, what lies at or above each of 16 candidates.
Nothing is sorted: 8 passes find a logit, 16 a score. Weights are fp64, as on the host, and a token is drawn
by the row's own random number.
A row may have limits, a bit for each token: what is not allowed is passed over as if it were not there.

Sources of the cuts: see drivers/model/reference_sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from drivers.triton_ops.keys import LOWEST, to_keys
from drivers.triton_ops.scores import Scores
from native.sampling import Draw

__all__ = ["NUM_NUMBERS", "can_draw", "draw_limits", "draw_numbers", "sample"]

BLOCK = 1024  # logits at once
# for each row: temperature, random number, top-k, top-p, min-p, its place among the limits (from 1; 0: none),
# and among the scores, likewise
NUM_NUMBERS = 7


@triton.jit
def _are_allowed(limits, has_limits, at, vocab_size):
    """Whether tokens are in the vocabulary, and allowed by the row's limits if it has any."""
    inside = at < vocab_size
    bits = tl.load(limits + at // 8, mask=inside & has_limits, other=255).to(tl.int32)
    return inside & (((bits >> (at % 8).to(tl.int32)) & 1) == 1)


@triton.jit
def _load(
    values, limits, has_limits, begin, vocab_size, largest, temperature,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Ids, keys and weights of a block; past the end, and of what is not allowed, the key is the lowest."""
    at = begin + tl.arange(0, BLOCK)
    inside = _are_allowed(limits, has_limits, at, vocab_size)
    loaded = tl.load(values + at, mask=inside, other=0.0)
    weights = tl.exp((loaded.to(tl.float64) - largest) / temperature)
    keys = tl.where(inside, to_keys(loaded, WIDE), LOWEST if WIDE else -1)
    return at, keys, tl.where(inside, weights, 0.0)


@triton.jit
def _measure(
    values, limits, has_limits, cut, vocab_size, largest, temperature, WIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """How many keys lie above a cut, their weight, how many equal it, and the weight of one of those."""
    num_above = tl.zeros((), tl.int64)
    above = tl.zeros((), tl.float64)
    num_equal = tl.zeros((), tl.int64)
    equal = tl.zeros((), tl.float64)
    for begin in range(0, vocab_size, BLOCK):
        _at, keys, weights = _load(
            values, limits, has_limits, begin, vocab_size, largest, temperature, WIDE, BLOCK
        )
        num_above += tl.sum((keys > cut).to(tl.int64), axis=0)
        above += tl.sum(tl.where(keys > cut, weights, 0.0), axis=0)
        num_equal += tl.sum((keys == cut).to(tl.int64), axis=0)
        equal = tl.maximum(equal, tl.max(tl.where(keys == cut, weights, 0.0), axis=0))
    return num_above, above, num_equal, equal


# the compiler must not make other code for another number of rows
@triton.jit(do_not_specialize=["num_rows"])
def _sample(
    logits, numbers, limits, scores, notes, counts, ids, num_bad, num_rows, vocab_size, limits_width,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)  # among the scores, or of a row
    NUM_DIGITS: tl.constexpr = 16 if WIDE else 8
    FLIP: tl.constexpr = LOWEST if WIDE else 0  # keys in the order of their bits
    num_scored = tl.num_programs(0)
    row = place
    end = vocab_size
    is_there = row >= 0
    logits += row * vocab_size
    values = logits
    if WIDE:
        row = tl.load(notes + place)
        end = tl.where(row >= 0, end, 0)
        is_there = row >= 0
        row = tl.maximum(row, 0)
        logits += (row - place) * vocab_size
        values = scores + place * vocab_size
    else:
        end = tl.where(tl.load(numbers + 6 * num_rows + row) > 0, 0, end)  # it is drawn from its scores
    limit = tl.load(numbers + 5 * num_rows + row).to(tl.int64)
    has_limits = limit > 0
    limits += (limit - 1) * limits_width
    temperature = tl.load(numbers + row)
    largest = tl.full((), -float("inf"), tl.float64 if WIDE else tl.float32)
    token = tl.zeros((), tl.int64)
    bad = tl.zeros((), tl.int64)
    for begin in range(0, end, BLOCK):
        at = (begin + tl.arange(0, BLOCK)).to(tl.int64)
        loaded = tl.load(logits + at, mask=at < vocab_size, other=-float("inf"))
        good = tl.abs(loaded) < float("inf")  # false for NaN, too
        bad += tl.sum(((at < vocab_size) & (good == 0)).to(tl.int64), axis=0)
        good &= _are_allowed(limits, has_limits, at, vocab_size)
        if WIDE:
            loaded = tl.load(values + at, mask=at < vocab_size, other=-float("inf"))
        loaded = tl.where(good, loaded, -float("inf"))
        best = tl.max(loaded, axis=0)
        lowest = tl.min(tl.where(good & (loaded == best), at, vocab_size), axis=0)
        token = tl.where(best > largest, lowest, token)
        largest = tl.maximum(largest, best)
    if (largest == -float("inf")) & (bad == 0):  # nothing is allowed
        token = tl.full((), -1, tl.int64)
    if (temperature > 0.0) & (bad == 0) & (token >= 0):
        top = largest.to(tl.float64)
        digits = tl.arange(0, 16).to(tl.int64)
        cut = tl.zeros((), tl.int64) ^ FLIP  # no key is below the next one
        quota = tl.zeros((), tl.int64)  # of those that equal the cut
        top_k = tl.load(numbers + 2 * num_rows + row).to(tl.int64)
        if (top_k > 0) & (top_k < vocab_size):
            found = tl.zeros((), tl.int64)
            for digit in range(NUM_DIGITS):
                shift = 4 * (NUM_DIGITS - 1 - digit)
                candidates = (found | (digits << shift)) ^ FLIP
                counted = tl.zeros((16,), tl.int64)
                for begin in range(0, vocab_size, BLOCK):
                    at, keys, weights = _load(
                        values, limits, has_limits, begin, vocab_size, top, temperature, WIDE, BLOCK
                    )
                    counted += tl.sum((keys[None, :] >= candidates[:, None]).to(tl.int64), axis=1)
                found |= tl.max(tl.where(counted >= top_k, digits, 0), axis=0) << shift
            cut = found ^ FLIP
            num_above, above, num_equal, equal = _measure(
                values, limits, has_limits, cut, vocab_size, top, temperature, WIDE, BLOCK
            )
            quota = top_k - num_above
        top_p = tl.load(numbers + 3 * num_rows + row)
        if top_p < 1.0:
            num_above, above, num_equal, equal = _measure(
                values, limits, has_limits, cut, vocab_size, top, temperature, WIDE, BLOCK
            )
            kept = quota.to(tl.float64) * equal  # at the cut of top-k, all together
            target = top_p * (above + kept)
            found = tl.zeros((), tl.int64)
            for digit in range(NUM_DIGITS):
                shift = 4 * (NUM_DIGITS - 1 - digit)
                candidates = (found | (digits << shift)) ^ FLIP
                sums = tl.zeros((16,), tl.float64)
                for begin in range(0, vocab_size, BLOCK):
                    at, keys, weights = _load(
                        values, limits, has_limits, begin, vocab_size, top, temperature, WIDE, BLOCK
                    )
                    is_in = (keys > cut)[None, :] & (keys[None, :] >= candidates[:, None])
                    sums += tl.sum(tl.where(is_in, weights[None, :], 0.0), axis=1)
                sums += tl.where(candidates <= cut, kept, 0.0)
                reached = (sums >= target) & (sums > 0.0)
                found |= tl.max(tl.where(reached, digits, 0), axis=0) << shift
            nucleus = found ^ FLIP
            num_above, above, num_equal, equal = _measure(
                values, limits, has_limits, nucleus, vocab_size, top, temperature, WIDE, BLOCK
            )
            # the least number of equals that reaches the target, and one in any case
            wanted = tl.ceil((target - above) / tl.where(equal > 0.0, equal, 1.0))
            most = tl.where(nucleus == cut, quota, num_equal)
            quota = tl.minimum(tl.maximum(wanted, 1.0).to(tl.int64), most)
            cut = nucleus
        min_p = tl.load(numbers + 4 * num_rows + row)
        drawn = tl.zeros((), tl.float64)  # first the total weight, then where in it the token lies
        passed = tl.zeros((), tl.float64)
        token = tl.full((), vocab_size, tl.int64)
        last = tl.zeros((), tl.int64)
        for turn in range(2):
            if turn == 1:
                drawn = passed * tl.load(numbers + num_rows + row)
            passed = tl.zeros((), tl.float64)
            num_seen = tl.zeros((), tl.int64)
            for begin in range(0, vocab_size, BLOCK):
                at, keys, weights = _load(
                    values, limits, has_limits, begin, vocab_size, top, temperature, WIDE, BLOCK
                )
                equals = (keys == cut).to(tl.int64)
                is_kept = (keys > cut) | ((keys == cut) & (num_seen + tl.cumsum(equals, axis=0) <= quota))
                weights = tl.where(is_kept & (weights >= min_p), weights, 0.0)
                reached = passed + tl.cumsum(weights, axis=0)
                if turn == 1:
                    token = tl.minimum(token, tl.min(tl.where(reached > drawn, at, vocab_size), axis=0))
                    last = tl.maximum(last, tl.max(tl.where(weights > 0.0, at, 0), axis=0))
                passed += tl.sum(weights, axis=0)
                num_seen += tl.sum(equals, axis=0)
        # the last bits of two sums may differ
        token = tl.where(token < vocab_size, token, last)
    tl.store(ids + row, token, mask=is_there)
    tl.store(num_bad + row, bad, mask=is_there)
    if WIDE:  # the next draw's penalties are about this token, too
        note = tl.load(notes + 2 * num_scored + place)
        if (note >= 0) & is_there & (bad == 0) & (token >= 0):
            counts += tl.load(notes + num_scored + place) * vocab_size + token
            tl.store(counts, tl.maximum(tl.load(counts), 1) + note.to(tl.int32))


def can_draw(draw: Draw | None) -> bool:
    """Whether a draw asks nothing of raw logits but a token; None is plain greedy, and does not."""
    return draw is None or draw.is_untold


def draw_numbers(draws: Sequence[Draw | None]) -> npt.NDArray[np.float64]:
    """The numbers of each row, [NUM_NUMBERS, num_rows]: zeros, which is greedy, for what cannot be drawn."""
    numbers = np.zeros((NUM_NUMBERS, len(draws)))
    num_limited = num_scored = 0
    for row, draw in enumerate(draws):
        if draw is not None and can_draw(draw):
            num_limited += draw.has_limits
            num_scored += draw.has_scores
            limit = num_limited if draw.has_limits else 0
            score = num_scored if draw.has_scores else 0
            cuts = (draw.temperature, draw.uniform, draw.top_k, draw.top_p, draw.min_p)
            if draw.cuts is not None:  # its scores are what is left of them
                cuts = (float(draw.temperature > 0.0), draw.uniform, 0, 1.0, 0.0)
            numbers[:, row] = (*cuts, limit, score)
    return numbers


def draw_limits(draws: Sequence[Draw | None], vocab_size: int) -> npt.NDArray[np.uint8] | None:
    """The limits that `draw_numbers` counts, or None: there are none.

    [num_limited, vocab_size / 8], rounded up: bit i % 8 of byte i / 8 says whether token i is allowed.
    """
    packed = []
    for draw in draws:
        if draw is not None and can_draw(draw) and draw.has_limits:
            are_allowed = np.full(vocab_size, not len(draw.allowed_ids))
            are_allowed[draw.allowed_ids] = True
            are_allowed[draw.banned_ids] = False
            packed.append(np.packbits(are_allowed, bitorder="little"))
    return np.stack(packed) if packed else None


def sample(
    logits: torch.Tensor,
    numbers: torch.Tensor,
    limits: torch.Tensor | None = None,
    scores: Scores | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token of each row.

    Args:
        logits: [num_rows, vocab_size], fp32, contiguous, at least one column.
        numbers: [NUM_NUMBERS, num_rows], fp64, contiguous: see `draw_numbers`.
        limits: of the rows that have some, uint8, contiguous: see `draw_limits`. None: no row has.
        scores: of the rows that have some. None: no row has.

    Returns:
        Token ids, -1 where none is allowed, and how many logits are not finite: where there are any, the id
        means nothing. [num_rows] each, int64.

    Raises:
        ValueError: a shape does not fit, or a tensor is not contiguous.
    """
    num_rows, vocab_size = logits.shape
    if logits.dtype != torch.float32 or not logits.is_contiguous() or not vocab_size:
        raise ValueError(f"logits {list(logits.shape)} must be contiguous fp32, with at least one column")
    if numbers.shape != (NUM_NUMBERS, num_rows) or not numbers.is_contiguous():
        raise ValueError(f"logits {list(logits.shape)}, but numbers {list(numbers.shape)}")
    if limits is None:
        limits = logits.new_empty((1, -(-vocab_size // 8)), dtype=torch.uint8)  # nobody looks there
    if limits.shape[1:] != (-(-vocab_size // 8),) or not limits.is_contiguous():
        raise ValueError(f"logits {list(logits.shape)}, but limits {list(limits.shape)}")
    ids, num_bad = torch.empty(2, num_rows, dtype=torch.int64, device=logits.device)
    given = (logits, numbers, limits)
    sizes = (ids, num_bad, num_rows, vocab_size, limits.shape[1])
    if num_rows:
        _sample[(num_rows,)](*given, logits, ids, ids, *sizes, WIDE=False, BLOCK=BLOCK)
    if scores is not None:
        _sample[(len(scores.values),)](
            *given, scores.values, scores.notes, scores.counts, *sizes, WIDE=True, BLOCK=BLOCK
        )
    return ids, num_bad
