"""The readable sampler: from logits to tokens in NumPy, fp64, row by row.

It serves devices whose logits come as tensors, and native/cpu/sample.c is tested against it. Rows are decided
one by one, each on its own [vocab_size] array, so nothing can depend on the batch; only plain greedy rows,
where there is nothing to round, are decided together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from drivers.model.reference_cuts import apply_cut, apply_mirostat, logprobs_of, next_mu
from drivers.ops.drawn import read_told
from drivers.ops.interface import Ops
from native.sampling import Choice, Draw, sample

__all__ = [
    "adjust_logits",
    "choose_token",
    "choose_tokens",
    "cut_scores",
    "draw_token",
    "kept_probabilities",
    "raw_logprobs",
    "tell_token",
]


def choose_tokens(logits: torch.Tensor, draws: Sequence[Draw | None], ops: Ops) -> list[Choice]:
    """Choose the next token of each row.

    Args:
        logits: [num_rows, vocab_size], fp32, raw from the model.
        draws: for each row; None: the lowest id of a largest logit.
        ops: what the logits were made with. What it cannot draw is decided here, by a copy of the row.
    """
    if not len(logits):
        return []
    wanted = [None if draw is None else draw.untold for draw in draws]
    can_draw = list(map(ops.can_draw, wanted))
    given = [draw if can else None for draw, can in zip(wanted, can_draw, strict=True)]
    ids, num_bad, told = ops.draw_tokens(logits, given)
    numbers = {} if told is None else dict(zip(told.rows, told.numbers.cpu().numpy(), strict=True))
    choices = []
    for place, (row, draw, can, token, bad) in enumerate(
        zip(logits, draws, can_draw, ids.tolist(), num_bad.tolist(), strict=True)
    ):
        if bad:
            choices.append(Choice(-1, bad))
            continue
        if draw is not None and not can:
            choices.append(sample(row.detach().cpu().numpy(), draw))  # `choose_token`, ten times as fast
            continue
        choice = Choice(token)
        if draw is not None and token >= 0:
            choice = read_told(numbers[place], token, draw.untold) if place in numbers else choice
            if not draw.is_untold:
                choice = tell_token(row.detach().cpu().numpy(), choice, draw)
        choices.append(choice)
    return choices


def tell_token(logits: np.ndarray, choice: Choice, draw: Draw) -> Choice:
    """A choice with the log-probabilities of raw logits [vocab_size] that its draw wants."""
    if choice.token < 0 or draw.is_untold:
        return choice
    return sample(logits, Draw(given=choice.token, num_top=draw.num_top))._replace(rank=0, mu=choice.mu)


def choose_token(logits: np.ndarray, draw: Draw) -> Choice:
    """Choose a token by raw logits [vocab_size], fp32, all finite."""
    raw = logits.astype(np.float64)
    if draw.given is not None:
        rank = 1 + int((raw > raw[draw.given]).sum())
        return Choice(draw.given, 0, *raw_logprobs(raw, draw.given, draw.num_top or 0), rank)
    scores = adjust_logits(raw, draw)
    if not scores.max() > -np.inf:
        return Choice(-1)
    if draw.cuts is not None:
        return _choose_by_cuts(raw, scores, draw)
    token = draw_token(scores, draw)
    return (
        Choice(token) if draw.num_top is None else Choice(token, 0, *raw_logprobs(raw, token, draw.num_top))
    )


def _choose_by_cuts(raw: np.ndarray, scores: np.ndarray, draw: Draw) -> Choice:
    """Choose a token by raw logits and adjusted ones, through the cuts and mirostat."""
    scores = scores - scores.max()
    mu = None if draw.mirostat is None else draw.mirostat.mu
    if draw.temperature == 0.0:
        token = int(np.argmax(scores))
    else:
        scores = cut_scores(scores, draw)
        with np.errstate(under="ignore"):
            token = _draw_by_weight(np.exp(scores), draw.uniform)
        if draw.mirostat is not None:
            mu = next_mu(float(logprobs_of(scores)[token]), draw.mirostat)
    if draw.num_top is None:
        return Choice(token, mu=mu)
    if not draw.is_processed:
        return Choice(token, 0, *raw_logprobs(raw, token, draw.num_top), mu=mu)
    with np.errstate(under="ignore"):
        num_left = int((np.exp(scores) > 0).sum())
    return Choice(token, 0, *raw_logprobs(scores, token, min(draw.num_top, num_left)), mu=mu)


def cut_scores(scores: np.ndarray, draw: Draw) -> np.ndarray:
    """What is left of adjusted scores [vocab_size] after the cuts and mirostat; the largest is 0."""
    scores = scores - scores.max()
    for cut in draw.cuts or ():
        scores = apply_cut(scores, cut)
    return scores if draw.mirostat is None else apply_mirostat(scores, draw.mirostat)


def adjust_logits(raw: np.ndarray, draw: Draw) -> np.ndarray:
    """Apply what is allowed, penalties, bias and bans to raw logits [vocab_size], fp64; returns a copy.

    Source: Keskar et al. 2019, "CTRL", arXiv:1909.05858 (repetition penalty).
    """
    scores = raw.copy()
    if len(draw.allowed_ids):
        scores = np.full_like(raw, -np.inf)
        scores[draw.allowed_ids] = raw[draw.allowed_ids]
    seen = scores[draw.seen_ids]
    seen = np.where(seen > 0, seen / draw.repetition_penalty, seen * draw.repetition_penalty)
    seen -= draw.frequency_penalty * draw.num_output
    seen -= draw.presence_penalty * (draw.num_output > 0)
    scores[draw.seen_ids] = seen
    np.add.at(scores, draw.bias_ids, draw.bias_values)
    scores[draw.banned_ids] = -np.inf
    return scores


def draw_token(scores: np.ndarray, draw: Draw) -> int:
    """Choose a token by adjusted logits [vocab_size]: the lowest id of the largest, or by chance.

    Chance is an inverse: the first token, in the order of ids, at which the running sum of the kept
    probabilities exceeds the draw's random number.
    """
    if draw.temperature == 0.0:
        return int(np.argmax(scores))  # numpy's argmax is the first of equals
    return _draw_by_weight(kept_probabilities(scores, draw), draw.uniform)


def _draw_by_weight(weights: np.ndarray, uniform: float) -> int:
    cumulative = np.cumsum(weights)
    # below the total even when the product rounds up to it, so a token of probability 0 is never reached
    target = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return int(np.searchsorted(cumulative, target, side="right"))


def kept_probabilities(scores: np.ndarray, draw: Draw) -> np.ndarray:
    """Unnormalised probabilities [vocab_size] after temperature, top-k, top-p and min-p; 0 where cut.

    Ties at a cut go to the lowest ids. The most likely token is always kept.

    Source: Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2019, arXiv:1904.09751 (top-p);
    Nguyen et al. 2024, arXiv:2407.01082 (min-p).
    """
    with np.errstate(over="ignore", under="ignore"):
        # the largest is exactly 1
        weights: np.ndarray = np.exp((scores - scores.max()) / draw.temperature)
    if 0 < draw.top_k < len(weights):
        _keep_only(weights, _largest(scores, draw.top_k))
    if draw.top_p < 1.0:
        total = weights.sum()
        # tokens below this together weigh less than half of what may be cut: the others hold the nucleus
        floor = 0.5 * (1.0 - draw.top_p) * total / len(weights)
        candidates = np.flatnonzero(weights >= floor)
        candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
        reached = np.cumsum(weights[candidates])
        size = int(np.searchsorted(reached, draw.top_p * total, side="left")) + 1
        _keep_only(weights, candidates[:size])
    if draw.min_p > 0.0:
        weights[weights < draw.min_p] = 0.0
    return weights


def raw_logprobs(
    raw: np.ndarray, token: int, num_top: int
) -> tuple[float, tuple[int, ...], tuple[float, ...]]:
    """Of raw logits [vocab_size]: a token's log-probability, the `num_top` most likely ids, and theirs."""
    shifted = raw - raw.max()
    with np.errstate(under="ignore"):
        logprobs = shifted - np.log(np.exp(shifted).sum())
    top = _largest(raw, min(num_top, len(raw)))
    return float(logprobs[token]), tuple(top.tolist()), tuple(logprobs[top].tolist())


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest scores, largest first, lowest id first among equals."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _keep_only(weights: np.ndarray, ids: np.ndarray) -> None:
    kept = weights[ids]
    weights[:] = 0.0
    weights[ids] = kept
