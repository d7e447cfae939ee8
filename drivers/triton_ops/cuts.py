"""Cuts in any order, and temperatures that depend on the row: one program a row, in place of its scores.

A cut takes the largest score from all, and leaves -inf for what cannot be drawn any more, as the readable
sampler's do (drivers/model/reference_cuts.py, with sources). What is kept by rank is found as in sample.py,
by the digits of 64-bit keys. Sums are in another order than the host's, in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from drivers.ops.transfer import send
from drivers.triton_ops.keys import LOWEST, to_keys
from native.sampling import CUT_KINDS, Draw

__all__ = ["apply_cuts"]

BLOCK = 1024  # scores at once
TEMPERATURE = tl.constexpr(int(CUT_KINDS["temperature"]))
DYNATEMP = tl.constexpr(int(CUT_KINDS["dynatemp"]))
TOP_N_SIGMA = tl.constexpr(int(CUT_KINDS["top_n_sigma"]))
TOP_K = tl.constexpr(int(CUT_KINDS["top_k"]))
TYPICAL_P = tl.constexpr(int(CUT_KINDS["typical_p"]))
TOP_P = tl.constexpr(int(CUT_KINDS["top_p"]))
MIN_P = tl.constexpr(int(CUT_KINDS["min_p"]))
XTC = tl.constexpr(int(CUT_KINDS["xtc"]))
SMALLEST = tl.constexpr(2.2250738585072014e-308)  # normal number in fp64


@triton.jit
def _load(scores, begin, vocab_size, top, BLOCK: tl.constexpr):
    """Ids and scores of a block, of which the row's largest is 0; -inf past the end."""
    at = begin + tl.arange(0, BLOCK)
    return at, tl.load(scores + at, mask=at < vocab_size, other=-float("inf")) - top


@triton.jit
def _ranks(at, x, mean, vocab_size, KIND: tl.constexpr):
    """Keys by which tokens are kept, the largest first."""
    value = -tl.abs(x - mean) if KIND == TYPICAL_P else x
    return tl.where(at < vocab_size, to_keys(value, True), LOWEST)


# the compiler must not make other code for another number of rows
@triton.jit(do_not_specialize=["num_cut"])
def _cut(scores, places, numbers, num_cut, vocab_size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0)
    scores += tl.load(places + index) * vocab_size
    value = tl.load(numbers + index)
    top = tl.full((), -float("inf"), tl.float64)
    for begin in range(0, vocab_size, BLOCK):
        _at, x = _load(scores, begin, vocab_size, 0.0, BLOCK)
        top = tl.maximum(top, tl.max(x, axis=0))
    top = tl.where(top == -float("inf"), 0.0, top)  # nothing is allowed: all stays as it is
    total = tl.zeros((), tl.float64)  # of weights
    by_weight = tl.zeros((), tl.float64)  # scores, each as often as its weight says
    plain = tl.zeros((), tl.float64)
    num_left = tl.zeros((), tl.float64)
    for begin in range(0, vocab_size, BLOCK):
        _at, x = _load(scores, begin, vocab_size, top, BLOCK)
        weights = tl.exp(x)
        total += tl.sum(weights, axis=0)
        is_left = x > -float("inf")
        x = tl.where(is_left, x, 0.0)
        by_weight += tl.sum(weights * x, axis=0)
        num_left += tl.sum(is_left.to(tl.float64), axis=0)
        plain += tl.sum(x, axis=0)
    mean = by_weight / tl.where(total > 0.0, total, 1.0)
    divisor = tl.full((), 1.0, tl.float64)
    least = tl.full((), -float("inf"), tl.float64)  # scores below it are cut
    if KIND == TEMPERATURE:
        divisor = value
    elif KIND == DYNATEMP:
        spread, exponent = tl.load(numbers + num_cut + index), tl.load(numbers + 2 * num_cut + index)
        low = tl.maximum(value - spread, 0.0)
        entropy = tl.log(tl.where(total > 0.0, total, 1.0)) - mean
        most = tl.log(tl.maximum(num_left, 1.0))
        part = tl.minimum(tl.maximum(entropy / tl.where(most > 0.0, most, 1.0), 0.0), 1.0)
        part = tl.where(most > 0.0, part, 0.0)
        power = tl.exp(exponent * tl.log(tl.where(part > 0.0, part, 1.0)))
        divisor = tl.maximum(low + (value + spread - low) * tl.where(part > 0.0, power, 0.0), SMALLEST)
    elif KIND == TOP_N_SIGMA:
        average = plain / tl.maximum(num_left, 1.0)
        squares = tl.zeros((), tl.float64)
        for begin in range(0, vocab_size, BLOCK):
            _at, x = _load(scores, begin, vocab_size, top, BLOCK)
            off = tl.where(x > -float("inf"), x - average, 0.0)
            squares += tl.sum(off * off, axis=0)
        least = -value * tl.sqrt(squares / tl.maximum(num_left, 1.0))
    cut = tl.full((), LOWEST, tl.int64)
    quota = tl.zeros((), tl.int64)  # of those that equal the cut
    if KIND == TOP_K or KIND == TOP_P or KIND == TYPICAL_P:  # noqa: SIM109 - triton has no other
        target = value if KIND == TOP_K else value * total
        digits = tl.arange(0, 16).to(tl.int64)
        found = tl.zeros((), tl.int64)
        for digit in range(16):
            shift = 60 - 4 * digit
            candidates = (found | (digits << shift)) ^ LOWEST
            sums = tl.zeros((16,), tl.float64)
            for begin in range(0, vocab_size, BLOCK):
                at, x = _load(scores, begin, vocab_size, top, BLOCK)
                parts = tl.where(at < vocab_size, 1.0, 0.0).to(tl.float64) if KIND == TOP_K else tl.exp(x)
                is_in = _ranks(at, x, mean, vocab_size, KIND)[None, :] >= candidates[:, None]
                sums += tl.sum(tl.where(is_in, parts[None, :], 0.0), axis=1)
            found |= tl.max(tl.where((sums >= target) & (sums > 0.0), digits, 0), axis=0) << shift
        cut = found ^ LOWEST
        above = tl.zeros((), tl.float64)
        equal = tl.zeros((), tl.float64)
        for begin in range(0, vocab_size, BLOCK):
            at, x = _load(scores, begin, vocab_size, top, BLOCK)
            parts = tl.where(at < vocab_size, 1.0, 0.0).to(tl.float64) if KIND == TOP_K else tl.exp(x)
            keys = _ranks(at, x, mean, vocab_size, KIND)
            above += tl.sum(tl.where(keys > cut, parts, 0.0), axis=0)
            equal = tl.maximum(equal, tl.max(tl.where(keys == cut, parts, 0.0), axis=0))
        # the least number of equals that reaches the target, and one in any case
        wanted = tl.ceil((target - above) / tl.where(equal > 0.0, equal, 1.0))
        quota = tl.maximum(wanted, 1.0).to(tl.int64)
    num_over = tl.zeros((), tl.float64)
    survivor = tl.full((), -1, tl.int64)  # of those that XTC would cut
    over = tl.full((), float("inf"), tl.float64)  # the least of their scores
    if KIND == XTC:
        for begin in range(0, vocab_size, BLOCK):
            at, x = _load(scores, begin, vocab_size, top, BLOCK)
            is_over = tl.exp(x) >= value * total
            num_over += tl.sum(is_over.to(tl.float64), axis=0)
            over = tl.minimum(over, tl.min(tl.where(is_over, x, float("inf")), axis=0))
        for begin in range(0, vocab_size, BLOCK):
            at, x = _load(scores, begin, vocab_size, top, BLOCK)
            is_last = (tl.exp(x) >= value * total) & (x == over)
            survivor = tl.maximum(survivor, tl.max(tl.where(is_last, at, -1).to(tl.int64), axis=0))
    num_seen = tl.zeros((), tl.int64)
    for begin in range(0, vocab_size, BLOCK):
        at, x = _load(scores, begin, vocab_size, top, BLOCK)
        is_kept = x >= least
        if KIND == MIN_P:
            is_kept = tl.exp(x) >= value
        elif KIND == XTC:
            is_kept = tl.where(tl.exp(x) >= value * total, at == survivor, at >= 0)
            is_kept = tl.where(num_over >= 2.0, is_kept, at >= 0)
        elif KIND == TOP_K or KIND == TOP_P or KIND == TYPICAL_P:  # noqa: SIM109 - triton has no other
            keys = _ranks(at, x, mean, vocab_size, KIND)
            equals = (keys == cut).to(tl.int64)
            is_kept = (keys > cut) | ((keys == cut) & (num_seen + tl.cumsum(equals, axis=0) <= quota))
            num_seen += tl.sum(equals, axis=0)
        x = tl.where(is_kept, x / divisor, -float("inf"))
        tl.store(scores + at, x, mask=at < vocab_size)


def apply_cuts(scores: torch.Tensor, draws: Sequence[Draw]) -> None:
    """Carry out the cuts of each row, in its own order.

    Args:
        scores: [num_rows, vocab_size], fp64, contiguous; overwritten.
        draws: one for each row.
    """
    cuts = [draw.cuts or () for draw in draws]
    for number in range(max(map(len, cuts), default=0)):
        kinds: dict[str, list[int]] = {}
        for place, given in enumerate(cuts):
            if number < len(given):
                kinds.setdefault(given[number].kind, []).append(place)
        for kind, places in sorted(kinds.items()):
            numbers = [cuts[place][number][1:] for place in places]
            _cut[(len(places),)](
                scores,
                send(torch.tensor(places, dtype=torch.int64), scores.device),
                send(torch.tensor(numbers, dtype=torch.float64).T.contiguous(), scores.device),
                len(places), scores.shape[1], KIND=int(CUT_KINDS[kind]), BLOCK=BLOCK,
            )  # fmt: skip
