"""From logits to tokens. A row's sample is a function of its logits, its space's state, seed and position.

Rows are decided one by one, each on its own [vocab_size] array in fp64, so nothing can depend on the batch;
only plain greedy rows, where there is nothing to round, are decided where the logits are made, and these
need not be written out for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from drivers.model.randomness import uniform
from drivers.model.sampling_state import SamplingState
from drivers.model.scores import Scores, score_logits
from drivers.ops.interface import Ops
from drivers.ops.reference import ReferenceOps
from llmos.device import Bind, Sampling, TokenLogprobs

__all__ = ["Sampled", "Sampler", "adjust_logits", "draw", "kept_probabilities", "raw_logprobs"]


class Sampled(NamedTuple):
    """One row's outcome: a token, or a fault that says why there is none."""

    token: int | None
    logprobs: TokenLogprobs | None
    fault: str | None


class Sampler:
    """Samples for all spaces of a driver, and keeps what each space's sampling depends on.

    A driver's step calls, in this order: `bind` and `release` for its edits, `observe` for every row with
    tokens of its own, then `sample` once for the sampling rows.
    """

    def __init__(self, vocab_size: int, ops: Ops | None = None) -> None:
        self._vocab_size = vocab_size
        self._ops = ops or ReferenceOps()
        self._states: dict[int, SamplingState] = {}

    @property
    def num_spaces(self) -> int:
        """Spaces bound and not released."""
        return len(self._states)

    def bind(self, bind: Bind) -> None:
        """Set, or set again, how a space samples; its counts start anew from `bind.tokens`."""
        self._states[bind.asid] = SamplingState(bind, self._vocab_size)

    def release(self, asid: int) -> None:
        """Forget a space; one that was never bound is fine."""
        self._states.pop(asid, None)

    def observe(self, asid: int, start: int, tokens: Sequence[int]) -> None:
        """Take in the input tokens of a row, at positions from start on; unbound spaces are ignored."""
        if (state := self._states.get(asid)) is not None:
            state.note(start, tokens)

    def last_token(self, asid: int) -> int | None:
        """The token that a space sampled last (or its last known one, right after `bind`)."""
        state = self._states.get(asid)
        return None if state is None else state.last_token

    def sample(self, logits: torch.Tensor, rows: Sequence[tuple[int, int]]) -> list[Sampled]:
        """Choose the next token of each row, and count it.

        Args:
            logits: [num_rows, vocab_size], fp32, raw from the model.
            rows: for each, its space and the absolute position that the new token will have: the row's
                `start + num_tokens`.

        Returns:
            One outcome for each row, in order. Logits that are not finite, and a space that was never bound,
            are that row's fault alone.
        """
        if not rows:
            return []
        return self.choose(score_logits(logits, self._ops, [True] * len(rows)), rows)

    def needs_logits(self, rows: Sequence[tuple[int, int]]) -> list[bool]:
        """For each row as `sample` takes them: whether `choose` will look at its logits."""
        states = [(self._states.get(asid), position) for asid, position in rows]
        return [
            state is not None and (state.sampling.logprobs is not None or not state.is_plain_greedy(position))
            for state, position in states
        ]

    def choose(self, scores: Scores, rows: Sequence[tuple[int, int]]) -> list[Sampled]:
        """`sample` from scores whose logits are there for every row that `needs_logits` named."""
        results: list[Sampled] = []
        for index, (asid, position) in enumerate(rows):
            state = self._states.get(asid)
            if state is None:
                results.append(Sampled(None, None, f"space {asid} has no sampling parameters"))
            elif num_bad := scores.num_bad[index]:
                message = f"{num_bad} of {self._vocab_size} logits are not finite at position {position - 1}"
                results.append(Sampled(None, None, message))
            else:
                results.append(self._sample_row(state, position, scores.logits[index], scores.best[index]))
        return results

    def _sample_row(
        self, state: SamplingState, position: int, logits: np.ndarray | None, best: int
    ) -> Sampled:
        token, logprobs = best, None
        plain = state.is_plain_greedy(position)
        wanted = state.sampling.logprobs
        if not plain or wanted is not None:
            assert logits is not None, "needs_logits() said so"
            raw = logits.astype(np.float64)
            if not plain:
                scores = adjust_logits(raw, state, position)
                if not scores.max() > -np.inf:
                    return Sampled(None, None, f"no token is allowed at position {position}")
                token = draw(scores, state.sampling, position)
            if wanted is not None:
                logprobs = raw_logprobs(raw, token, wanted)
        state.note(position, (token,))
        state.last_token = token
        return Sampled(token, logprobs, None)


def adjust_logits(raw: np.ndarray, state: SamplingState, position: int) -> np.ndarray:
    """Apply penalties, bias and the ban on stopping early to raw logits [vocab_size], fp64; returns a copy.

    Source: Keskar et al. 2019, "CTRL", arXiv:1909.05858 (repetition penalty).
    """
    scores = raw.copy()
    sampling = state.sampling
    if state.counts is not None:
        ids, num_output = state.counts.arrays()
        seen = scores[ids]
        seen = np.where(seen > 0, seen / sampling.repetition_penalty, seen * sampling.repetition_penalty)
        seen -= sampling.frequency_penalty * num_output
        seen -= sampling.presence_penalty * (num_output > 0)
        scores[ids] = seen
    scores[state.bias_ids] += state.bias_values
    if state.must_not_stop(position):
        scores[state.stop_ids] = -np.inf
    return scores


def draw(scores: np.ndarray, sampling: Sampling, position: int) -> int:
    """Choose a token by adjusted logits [vocab_size]: the lowest id of the largest, or by chance.

    Chance is an inverse: the first token, in the order of ids, at which the running sum of the kept
    probabilities exceeds the position's random number.
    """
    if sampling.temperature == 0.0:
        return int(np.argmax(scores))  # numpy's argmax is the first of equals
    cumulative = np.cumsum(kept_probabilities(scores, sampling))
    # below the total even when the product rounds up to it, so a token of probability 0 is never reached
    target = min(uniform(sampling.seed or 0, position) * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return int(np.searchsorted(cumulative, target, side="right"))


def kept_probabilities(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Unnormalised probabilities [vocab_size] after temperature, top-k, top-p and min-p; 0 where cut.

    Ties at a cut go to the lowest ids. The most likely token is always kept.

    Source: Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2019, arXiv:1904.09751 (top-p);
    Nguyen et al. 2024, arXiv:2407.01082 (min-p).
    """
    with np.errstate(over="ignore", under="ignore"):
        # the largest is exactly 1
        weights: np.ndarray = np.exp((scores - scores.max()) / sampling.temperature)
    if 0 < sampling.top_k < len(weights):
        _keep_only(weights, _largest(scores, sampling.top_k))
    if sampling.top_p < 1.0:
        total = weights.sum()
        # tokens below this together weigh less than half of what may be cut: the others hold the nucleus
        floor = 0.5 * (1.0 - sampling.top_p) * total / len(weights)
        candidates = np.flatnonzero(weights >= floor)
        candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
        reached = np.cumsum(weights[candidates])
        size = int(np.searchsorted(reached, sampling.top_p * total, side="left")) + 1
        _keep_only(weights, candidates[:size])
    if sampling.min_p > 0.0:
        weights[weights < sampling.min_p] = 0.0
    return weights


def raw_logprobs(raw: np.ndarray, token: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities of a token and of the `num_top` most likely, from raw logits [vocab_size]."""
    shifted = raw - raw.max()
    with np.errstate(under="ignore"):
        logprobs = shifted - np.log(np.exp(shifted).sum())
    top = _largest(raw, min(num_top, len(raw)))
    return TokenLogprobs(float(logprobs[token]), tuple(top.tolist()), tuple(logprobs[top].tolist()))


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
