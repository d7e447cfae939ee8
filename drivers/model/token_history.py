"""The tokens of one space in order, for what looks back: DRY, bad words, penalties over the last few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmos.device import Dry
from native.sampling import repeats

__all__ = ["BadWords", "DryPenalty", "TokenHistory"]

Ids = npt.NDArray[np.int64]
MAX_PENALTY = 1e30  # where a power would overflow: nothing outweighs it, and it is still a number


class TokenHistory:
    """Token ids, at positions from 0 on."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._tokens = np.empty(256, dtype=np.int32)
        self._length = 0

    def add(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        end = self._length + len(tokens)
        if end > len(self._tokens):
            self._tokens = np.resize(self._tokens, max(end, 2 * len(self._tokens)))
        self._tokens[self._length : end] = tokens
        self._length = end

    def last(self, count: int) -> npt.NDArray[np.int32]:
        """The last tokens, at most so many; -1: all. A view, until the next `add`."""
        start = max(0, self._length - count) if count >= 0 else 0
        return self._tokens[start : self._length]

    def count_last(self, count: int, num_prompt_tokens: int) -> tuple[Ids, Ids]:
        """Ids among the last tokens, and how often each is among those of the output: aligned."""
        tokens = self.last(count)
        num_of_prompt = max(0, num_prompt_tokens - (self._length - len(tokens)))
        ids, places = np.unique(tokens, return_inverse=True)
        num_output = np.bincount(places[num_of_prompt:], minlength=len(ids)).astype(np.int64)
        has_logit = (ids >= 0) & (ids < self.vocab_size)
        return ids[has_logit].astype(np.int64), num_output[has_logit]


class DryPenalty:
    """DRY for one space: which tokens would continue a repetition, and what they lose."""

    def __init__(self, dry: Dry, vocab_size: int) -> None:
        self._dry = dry
        self._is_breaker = np.zeros(vocab_size, dtype=np.bool_)
        self._is_breaker[[token for token in dry.breakers if 0 <= token < vocab_size]] = True

    def biases(self, history: TokenHistory) -> tuple[Ids, npt.NDArray[np.float64]]:
        """Ids, each once, and the numbers, below 0, to add to their scores."""
        dry = self._dry
        tokens = history.last(dry.last_n)
        breaks = np.flatnonzero(self._is_breaker[tokens])
        most = len(tokens) - 1 - int(breaks[-1]) if len(breaks) else len(tokens)
        if most < dry.allowed_length:
            return np.empty(0, dtype=np.int64), np.empty(0)
        lengths = repeats(tokens, most)
        is_repeat = (lengths >= dry.allowed_length) & ~self._is_breaker[tokens]
        ids, places = np.unique(tokens[is_repeat], return_inverse=True)
        longest = np.zeros(len(ids))
        np.maximum.at(longest, places, lengths[is_repeat])
        with np.errstate(over="ignore"):
            penalties = dry.multiplier * np.power(dry.base, longest - dry.allowed_length)
        return ids.astype(np.int64), -np.minimum(penalties, MAX_PENALTY)


class BadWords:
    """Token sequences that are not to be completed."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._words = [(np.array(word[:-1], dtype=np.int32), word[-1]) for word in words]

    def __bool__(self) -> bool:
        return bool(self._words)

    def banned(self, history: TokenHistory) -> list[int]:
        """The ids that would complete one, each once."""
        return sorted(
            {last for begin, last in self._words if np.array_equal(history.last(len(begin)), begin)}
        )
