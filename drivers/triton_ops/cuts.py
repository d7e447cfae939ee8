"""Cuts in any order, and mirostat, in place of scores: one program a row.

A cut takes the largest score from all, and leaves -inf for what cannot be drawn any more, as the readable
sampler's do (drivers/model/reference_cuts.py, with sources). What is kept by rank is found as in sample.py,
by the digits of 64-bit keys. Sums are in another order than the host's, in fp64.
"""

from __future__ import annotations

import math
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
SURPRISE = tl.constexpr(1 + max(int(kind) for kind in CUT_KINDS.values()))  # mirostat 2: mu
BEST = 128  # lanes for the hundred that mirostat 1 measures
NUM_BEST = tl.constexpr(100)
LN_2 = tl.constexpr(math.log(2.0))
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
    elif KIND == SURPRISE:
        least = tl.log(tl.where(total > 0.0, total, 1.0)) - value * LN_2
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
        elif KIND == SURPRISE:  # the best one in any case
            equals = (x == 0.0).to(tl.int64)
            is_first = (equals == 1) & (num_seen + tl.cumsum(equals, axis=0) <= 1)
            num_seen += tl.sum(equals, axis=0)
            is_kept = tl.where(least > 0.0, is_first, is_kept)
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


@triton.jit(do_not_specialize=["num_cut"])
def _count_for_surprise(best, mus, counts, num_cut, num_best, vocab_size, LANES: tl.constexpr):
    """How many of the best to keep for a surprise of mu bits, by how fast the best hundred fall."""
    index = tl.program_id(0)
    rank = tl.arange(0, LANES)
    best += index * num_best
    top = tl.load(best)
    top = tl.where(top == -float("inf"), 0.0, top)  # nothing is allowed
    here = tl.load(best + rank, mask=rank < num_best, other=-float("inf")) - top
    after = tl.load(best + rank + 1, mask=rank + 1 < num_best, other=-float("inf")) - top
    is_in = tl.exp(after) > 0.0
    t = tl.log((rank + 2).to(tl.float64) / (rank + 1).to(tl.float64))
    products = tl.sum(tl.where(is_in, t * (here - tl.where(is_in, after, 0.0)), 0.0), axis=0)
    squares = tl.sum(tl.where(is_in, t * t, 0.0), axis=0)
    slope = products / tl.where(squares > 0.0, squares, 1.0)
    epsilon = slope - 1.0
    size = tl.maximum(vocab_size, 2).to(tl.float64)
    power = 1.0 - tl.exp(-epsilon * tl.log(size))
    ratio = tl.where(epsilon == 0.0, 1.0 / tl.log(size), epsilon / tl.where(epsilon == 0.0, 1.0, power))
    # the logarithm of the count, which may be beyond what a number can be
    wanted = (tl.log(ratio) + tl.load(mus + index) * LN_2) / tl.maximum(slope, 1e-12)
    count = tl.exp(tl.minimum(tl.maximum(wanted, -1.0), 2.0 * tl.log(size)))
    count = tl.where(count < size, tl.maximum(tl.floor(count), 1.0), size)
    tl.store(counts + index, tl.where(squares > 0.0, count, 1.0))


def apply_cuts(scores: torch.Tensor, draws: Sequence[Draw], mus: torch.Tensor | None = None) -> None:
    """Carry out the cuts of each row, in its own order, and mirostat.

    Args:
        scores: [num_rows, vocab_size], fp64, contiguous; overwritten.
        draws: one for each row.
        mus: of the draws by mirostat, in their order, fp64, on the scores' device; None: there are none.
    """
    cuts = [draw.cuts or () for draw in draws]
    for number in range(max(map(len, cuts), default=0)):
        kinds: dict[str, list[int]] = {}
        for place, given in enumerate(cuts):
            if number < len(given):
                kinds.setdefault(given[number].kind, []).append(place)
        for kind, places in sorted(kinds.items()):
            numbers_of = [cuts[place][number][1:] for place in places]
            numbers = send(torch.tensor(numbers_of, dtype=torch.float64).T.contiguous(), scores.device)
            _launch(scores, send(torch.tensor(places), scores.device), numbers, CUT_KINDS[kind])
    if mus is not None:
        _keep_for_surprise(scores, draws, mus)


def _keep_for_surprise(scores: torch.Tensor, draws: Sequence[Draw], mus: torch.Tensor) -> None:
    """Cut by mirostat, whose mu only the device may know."""
    by_mirostat = [(place, draw.mirostat) for place, draw in enumerate(draws) if draw.mirostat is not None]
    for version in (1, 2):
        found = [(place, i) for i, (place, each) in enumerate(by_mirostat) if each.version == version]
        if not found:
            continue
        places, order = send(torch.tensor(found).T.contiguous(), scores.device)
        numbers = mus[order]
        if version == 1:
            num_best = min(int(NUM_BEST), scores.shape[1])
            best = torch.topk(scores[places], num_best, dim=1).values.contiguous()
            counts = torch.empty_like(numbers)
            _count_for_surprise[(len(found),)](
                best, numbers, counts, len(found), num_best, scores.shape[1], LANES=BEST
            )
            numbers = counts
        _launch(scores, places, numbers, int(TOP_K) if version == 1 else int(SURPRISE))


def _launch(scores: torch.Tensor, places: torch.Tensor, numbers: torch.Tensor, kind: int) -> None:
    """One kind of cut for some rows, by numbers [1 or 3, num_cut] or [num_cut]."""
    size = (len(places),)
    _cut[size](scores, places, numbers, *size, scores.shape[1], KIND=int(kind), BLOCK=BLOCK)
