"""Cuts, one by one, written to be read: what native/cpu/sample_cuts.c does to a row, in NumPy, fp64.

A distribution is an array of scores over the vocabulary; a token's weight is e^score, and -inf is a token
that cannot be drawn. A cut returns scores of which the largest is 0.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from native.sampling import Cut, MirostatDraw

__all__ = ["apply_cut", "apply_mirostat", "keep", "logprobs_of", "next_mu"]

Scores = npt.NDArray[np.float64]


def keep(scores: Scores, is_kept: npt.NDArray[np.bool_]) -> Scores:
    """Take every other token away."""
    kept = np.where(is_kept, scores, -np.inf)
    shifted: Scores = kept - kept.max()
    return shifted


def logprobs_of(scores: Scores) -> Scores:
    """Log-probabilities."""
    with np.errstate(under="ignore"):
        logprobs: Scores = scores - np.log(np.exp(scores).sum())
        return logprobs


def _ranked(scores: Scores) -> npt.NDArray[np.intp]:
    """Ids by score, largest first, the lowest id first among equals."""
    return np.argsort(-scores, kind="stable")


def _first(ids: npt.NDArray[np.intp], count: int, vocab_size: int) -> npt.NDArray[np.bool_]:
    is_kept = np.zeros(vocab_size, dtype=np.bool_)
    is_kept[ids[:count]] = True
    return is_kept


def _up_to(ids: npt.NDArray[np.intp], weights: Scores, part: float) -> npt.NDArray[np.bool_]:
    """The first ids that together have a part of all weight: at least one."""
    reached = np.cumsum(weights[ids])
    count = int(np.searchsorted(reached, part * weights.sum(), side="left")) + 1
    return _first(ids, count, len(weights))


def _mean(scores: Scores, weights: Scores) -> float:
    """Mean score by weight."""
    has_weight = weights > 0
    return float((weights[has_weight] * scores[has_weight]).sum() / weights.sum())


def apply_cut(scores: Scores, cut: Cut) -> Scores:
    """Carry one cut out.

    Sources: top-k, Fan et al. 2018, arXiv:1805.04833; top-p, Holtzman et al. 2019, arXiv:1904.09751; min-p,
    Nguyen et al. 2024, arXiv:2407.01082; typical, Meister et al. 2022, arXiv:2202.00666; top-n-sigma, Tang et
    al. 2024, arXiv:2411.07641; XTC, p-e-w 2024; dynamic temperature, Zhu et al. 2024, arXiv:2403.14541.

    Args:
        scores: [vocab_size], the largest is 0.
        cut: which, and its limit.
    """
    with np.errstate(under="ignore"):
        weights = np.exp(scores)
    value, can_be = cut.value, scores > -np.inf
    match cut.kind:
        case "temperature":
            return _scale(scores, value)
        case "dynatemp":
            return _scale(scores, _dynamic_temperature(cut, scores, weights))
        case "top_n_sigma":
            return keep(scores, scores >= -value * scores[can_be].std())
        case "top_k":
            return keep(scores, _first(_ranked(scores), int(value), len(scores)))
        case "typical_p":
            # |-log p - entropy| for each token: the logarithm of the total weight is in both, and falls away
            distance = np.abs(np.where(can_be, scores, -np.inf) - _mean(scores, weights))
            return keep(scores, _up_to(np.argsort(distance, kind="stable"), weights, value))
        case "top_p":
            return keep(scores, _up_to(_ranked(scores), weights, value))
        case "min_p":
            return keep(scores, weights >= value)
        case "xtc":
            over = _ranked(scores)[: int((weights >= value * weights.sum()).sum())]
            is_kept = can_be.copy()
            is_kept[over[:-1]] = False
            return keep(scores, is_kept)
    raise ValueError(f"there is no cut {cut.kind!r}")


def _scale(scores: Scores, temperature: float) -> Scores:
    with np.errstate(over="ignore"):
        return scores / temperature


def _dynamic_temperature(cut: Cut, scores: Scores, weights: Scores) -> float:
    """Between value - spread and value + spread, by how near the entropy is to the most that it could be."""
    low, high = max(0.0, cut.value - cut.spread), cut.value + cut.spread
    entropy = math.log(weights.sum()) - _mean(scores, weights)
    most = math.log((scores > -np.inf).sum())
    part = min(max(0.0, entropy / most), 1.0) if most > 0 else 0.0
    return float(max(low + (high - low) * part**cut.exponent, np.finfo(np.float64).tiny))


def apply_mirostat(scores: Scores, mirostat: MirostatDraw) -> Scores:
    """Keep the most likely tokens so that one drawn from them surprises by about mu bits.

    Version 1 estimates, by Zipf's law through the best hundred, how many tokens that takes. Version 2 keeps
    those that surprise by no more than mu, and the best one in any case.

    Source: Basu et al. 2021, arXiv:2007.14966, algorithms 1 and 2.
    """
    if mirostat.version == 2:
        surprise = -logprobs_of(scores) / math.log(2)
        best = np.zeros(len(scores), dtype=np.bool_)
        best[np.argmax(scores)] = True
        return keep(scores, surprise <= mirostat.mu if surprise.min() <= mirostat.mu else best)
    ranked = _ranked(scores)
    best_hundred = scores[ranked][:100]
    best_hundred = best_hundred[np.exp(best_hundred) > 0]
    rank = np.arange(1, len(best_hundred))
    t = np.log((rank + 1) / rank)
    if not len(t):
        return keep(scores, _first(ranked, 1, len(scores)))
    slope = float((t * -np.diff(best_hundred)).sum() / (t * t).sum())
    vocab_size, epsilon = len(scores), slope - 1.0
    with np.errstate(all="ignore"):
        ratio = np.float64(epsilon) / (1.0 - float(vocab_size) ** -epsilon)
        if epsilon == 0.0:
            ratio = np.float64(1.0 / math.log(vocab_size))
        count = np.power(ratio * np.exp2(mirostat.mu), np.float64(1.0) / slope)
    num_kept = int(max(1.0, math.floor(count))) if count < vocab_size else vocab_size
    return keep(scores, _first(ranked, num_kept, vocab_size))


def next_mu(logprob: float, mirostat: MirostatDraw) -> float:
    """Mu after a token with that log-probability among those that were kept."""
    surprise = -logprob / math.log(2)
    return mirostat.mu - mirostat.eta * (surprise - mirostat.tau)
