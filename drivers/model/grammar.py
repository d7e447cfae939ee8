"""Grammars that output must follow: which tokens may come next, by llguidance.

A space's state is a function of its grammar and its output tokens, so it is made anew from them whenever the
space is bound: after a preemption, on another device, from an image.

Source: llguidance, https://github.com/guidance-ai/llguidance (Earley parser over a lexer of derivatives, with
masks from a trie of the vocabulary).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer

__all__ = ["Grammar", "GrammarError", "GrammarTokens"]

NO_IDS = np.empty(0, dtype=np.int64)
MAX_COMPILED = 64  # grammars that are kept


class GrammarError(ValueError):
    """The grammar cannot be followed; says why."""


class GrammarTokens:
    """What grammars need to know of a model's tokens, and the grammars that were compiled last."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._compile = lru_cache(MAX_COMPILED)(partial(LLMatcher, tokenizer))

    def matcher(self, source: str) -> LLMatcher:
        """A matcher at the grammar's beginning. A grammar that was bound lately is not compiled again."""
        return self._compile(source).deep_copy()

    @classmethod
    def open(cls, folder: str, vocab_size: int, eos_token_ids: Sequence[int]) -> GrammarTokens | None:
        """Read tokenizer.json; None when there is none, or one that the library cannot read."""
        file = Path(folder) / "tokenizer.json"
        try:
            text = file.read_text(encoding="utf-8")
            return cls(LLTokenizer(text, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None))
        except (OSError, ValueError):
            return None


class Grammar:
    """One space's grammar and where its output has come to.

    Args:
        tokens: the model's.
        source: the grammar, in Lark as llguidance reads it.
        stop_ids: tokens that end the output: allowed where the grammar is complete. [num_stop_tokens], int64

    Raises:
        GrammarError: the source is no grammar.
    """

    def __init__(self, tokens: GrammarTokens | None, source: str, stop_ids: np.ndarray) -> None:
        if tokens is None:
            raise GrammarError("this model has no tokenizer.json that grammars can be followed with")
        self._matcher = tokens.matcher(source)
        self._vocab_size = tokens.tokenizer.vocab_size
        self._stop_ids = stop_ids if len(stop_ids) else np.array(tokens.tokenizer.eos_tokens, dtype=np.int64)
        if problem := self._matcher.get_error():
            raise GrammarError(problem.strip())

    @property
    def is_over(self) -> bool:
        """True when nothing but an end may follow."""
        return bool(self._matcher.is_stopped())

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in output tokens. One that does not fit, such as an end token, ends the output."""
        if not self.is_over:
            self._matcher.consume_tokens([int(token) for token in tokens])

    def allowed_ids(self, *, may_stop: bool = True) -> np.ndarray:
        """Tokens that may come next, at least one, sorted. [num_allowed], int64

        Args:
            may_stop: False: no end where something else is possible.
        """
        return np.flatnonzero(self._mask(may_stop=may_stop))

    def limits(self, *, may_stop: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The same, as tokens that are allowed or as tokens that are banned: the shorter list.

        In a text all but a few of a vocabulary may come next, between texts only a few.

        Returns:
            Tokens besides which none is allowed, or [0]; tokens that are banned, or [0]. int64
        """
        mask = self._mask(may_stop=may_stop)
        if 2 * np.count_nonzero(mask) <= len(mask):
            return np.flatnonzero(mask), NO_IDS
        return NO_IDS, np.flatnonzero(~mask)

    def _mask(self, *, may_stop: bool) -> np.ndarray:
        """True for each token that may come next. [vocab_size], bool"""
        mask = np.zeros(self._vocab_size, dtype=np.bool_)
        if not self.is_over:
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            if not self.is_over:  # else it was too much for the library's limits
                # NumPy finds what is true much faster than what is not 0.
                mask = np.unpackbits(packed, bitorder="little")[: self._vocab_size].view(np.bool_)
                mask[self._stop_ids] = False
        if not mask.any() or (may_stop and self._matcher.is_accepting()):
            mask[self._stop_ids] = True
        return mask
