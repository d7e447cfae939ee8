"""Grammars that output must follow: which tokens may come next, by llguidance.

A space's state is a function of its grammar and its output tokens, so it is made anew from them whenever the
space is bound: after a preemption, on another device, from an image.

Source: llguidance, https://github.com/guidance-ai/llguidance (Earley parser over a lexer of derivatives, with
masks from a trie of the vocabulary).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from llguidance import LLMatcher, LLTokenizer

__all__ = ["CompiledGrammar", "Grammar", "GrammarError", "GrammarTokens"]

# Else the library traces its stack once more for each rule that an error passes: seconds for a small grammar.
os.environ.setdefault("RUST_LIB_BACKTRACE", "0")

NO_IDS = np.empty(0, dtype=np.int64)
MAX_MASK_SECONDS = 0.05  # of processor time, for one like that of the grammar's beginning


class GrammarError(ValueError):
    """The grammar cannot be followed; says why."""


@attrs.frozen(eq=False)
class CompiledGrammar:
    """A grammar that is ready to be followed, from its beginning, by any number of spaces."""

    matcher: LLMatcher  # at the beginning; never moved
    vocab_size: int
    eos_ids: np.ndarray  # what ends an output for which nothing else is said to. [num_eos_tokens], int64


@attrs.frozen(eq=False)
class GrammarTokens:
    """What grammars need to know of a model's tokens."""

    tokenizer: LLTokenizer

    @classmethod
    def open(cls, folder: str, vocab_size: int, eos_token_ids: Sequence[int]) -> GrammarTokens | None:
        """Read tokenizer.json; None when there is none, or one that the library cannot read."""
        file = Path(folder) / "tokenizer.json"
        try:
            text = file.read_text(encoding="utf-8")
            return cls(LLTokenizer(text, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None))
        except (OSError, ValueError):
            return None

    def compile(self, source: str) -> CompiledGrammar:
        """Compile a grammar, and make its first mask, which is the dearest. Takes a millisecond, or seconds.

        The library lets go of Python's lock meanwhile.

        Args:
            source: in Lark as llguidance reads it.

        Raises:
            GrammarError: the source is no grammar, or its masks take too long.
        """
        matcher = LLMatcher(self.tokenizer, source, log_level=0)
        first = matcher.deep_copy()
        if not _problem_of(first):
            first.compute_bitmask()
        if problem := _problem_of(first):
            raise GrammarError(f"grammar cannot be followed: {problem}")
        matcher = first.deep_copy()  # has the states of the lexer that the mask took
        began = time.thread_time()
        matcher.deep_copy().compute_bitmask()
        if (spent := time.thread_time() - began) > MAX_MASK_SECONDS:
            raise GrammarError(
                f"grammar takes {spent:.2f} s for each token; the limit is {MAX_MASK_SECONDS:g} s"
            )
        eos_ids = np.array(self.tokenizer.eos_tokens, dtype=np.int64)
        return CompiledGrammar(matcher, self.tokenizer.vocab_size, eos_ids)


class Grammar:
    """One space's grammar and where its output has come to.

    Args:
        compiled: at its beginning; others may follow it, too.
        stop_ids: tokens that end the output: allowed where the grammar is complete. [num_stop_tokens], int64
    """

    def __init__(self, compiled: CompiledGrammar, stop_ids: np.ndarray) -> None:
        self._matcher = compiled.matcher.deep_copy()
        self._vocab_size = compiled.vocab_size
        self._stop_ids = stop_ids if len(stop_ids) else compiled.eos_ids
        self.problem: str | None = None  # why no token was allowed but an end, though more should follow

    @property
    def is_over(self) -> bool:
        """True when nothing but an end may follow."""
        return bool(self._matcher.is_stopped())

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in output tokens. One that does not fit, such as an end token, ends the output."""
        if not self.is_over:
            self._matcher.consume_tokens([int(token) for token in tokens])
            if self.is_over and not np.isin(tokens, self._stop_ids).any():
                self._note_problem()

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

    def _note_problem(self) -> None:
        if problem := self._matcher.get_error():
            self.problem = f"grammar cannot be followed from here: {problem.splitlines()[0]}"

    def _mask(self, *, may_stop: bool) -> np.ndarray:
        """True for each token that may come next. [vocab_size], bool"""
        mask = np.zeros(self._vocab_size, dtype=np.bool_)
        if not self.is_over:
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            if self.is_over:  # it was too much for the library's limits
                self._note_problem()
            else:
                # NumPy finds what is true much faster than what is not 0.
                mask = np.unpackbits(packed, bitorder="little")[: self._vocab_size].view(np.bool_)
                mask[self._stop_ids] = False
        if not mask.any() or (may_stop and self._matcher.is_accepting()):
            mask[self._stop_ids] = True
        return mask


def _problem_of(matcher: LLMatcher) -> str:
    """Why a matcher cannot go on, on one line; empty: it can."""
    return " ".join((matcher.get_error() or "").split())
