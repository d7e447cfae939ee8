"""What the sampler remembers of one space: its parameters, its last token, its counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from attrs import evolve

from drivers.model.grammar import CompiledGrammar, Grammar
from drivers.model.randomness import XTC, uniform
from drivers.model.token_history import BadWords, DryPenalty, TokenHistory
from llmos.device import CUTS, Bind, Sampling
from native.sampling import Cut, Draw, MirostatDraw, Tally, Window

__all__ = ["SamplingState", "list_cuts", "needs_cuts"]

NO_IDS = np.empty(0, dtype=np.int64)


class TokenCounts:
    """Sparse counts over a vocabulary: which tokens occurred at all, and how often in the output."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._slots: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._num_output = np.zeros(64, dtype=np.int64)

    def add(self, tokens: Iterable[int], *, output: bool) -> None:
        """Count tokens of the prompt or of the output; ids outside the vocabulary have no logit."""
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                continue
            slot = self._slots.setdefault(token, len(self._slots))
            if slot == len(self._ids):
                self._ids = np.resize(self._ids, 2 * slot)
                self._num_output = np.concatenate((self._num_output, np.zeros(slot, dtype=np.int64)))
            self._ids[slot] = token
            self._num_output[slot] += output

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids that occurred in prompt or output, and how often each did in the output: views, aligned."""
        size = len(self._slots)
        return self._ids[:size], self._num_output[:size]


class SamplingState:
    """One space's `Bind`, and the history since.

    Tokens at positions from `num_prompt_tokens` on are output, whoever chose them; each position is counted
    once, whether it came with the `Bind`, was sampled here, or was an input of a later row.
    """

    def __init__(self, bind: Bind, vocab_size: int, grammar: CompiledGrammar | None = None) -> None:
        self.sampling = sampling = bind.sampling
        self.num_prompt_tokens = bind.num_prompt_tokens
        self.min_tokens = bind.min_tokens
        self.last_token = bind.tokens[-1] if bind.tokens else None
        self.stop_ids = _ids(bind.stop_token_ids, vocab_size)
        bias = {token: value for token, value in sampling.logit_bias.items() if 0 <= token < vocab_size}
        self.bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self.bias_values = np.fromiter(bias.values(), dtype=np.float64, count=len(bias))
        self.allowed_ids = _ids(sampling.allowed_token_ids, vocab_size)
        self.grammar = Grammar(grammar, self.stop_ids) if grammar is not None else None
        self.mu = bind.mu
        if self.mu is None and sampling.mirostat is not None:
            self.mu = sampling.mirostat.first_mu
        counts_all = sampling.has_penalties and sampling.repeat_last_n < 0
        self.counts = TokenCounts(vocab_size) if counts_all else None
        self.history = TokenHistory(vocab_size) if sampling.needs_history else None
        self._dry = DryPenalty(sampling.dry, vocab_size) if sampling.dry is not None else None
        self._lone_words = _ids((word[0] for word in sampling.bad_words if len(word) == 1), vocab_size)
        self._bad_words = BadWords(
            [
                word
                for word in sampling.bad_words
                if len(word) > 1 and all(0 <= token < vocab_size for token in word)
            ]
        )
        self._looks_back = sampling.dry is not None or bool(self._bad_words)
        self._needs_cuts = needs_cuts(sampling)
        self._num_known = 0
        self.note(0, bind.tokens)

    def note(self, start: int, tokens: Sequence[int]) -> None:
        """Take in tokens at positions start, start + 1, ...; those already known are passed over."""
        fresh = tokens[max(0, self._num_known - start) :]
        if not fresh:
            return
        num_prompt = max(0, self.num_prompt_tokens - (start + len(tokens) - len(fresh)))
        prompt, output = fresh[:num_prompt], fresh[num_prompt:]
        if self.counts is not None:
            self.counts.add(prompt, output=False)
            self.counts.add(output, output=True)
        if self.history is not None:
            self.history.add(fresh)
        if self.grammar is not None:
            self.grammar.advance(output)
        self._num_known = start + len(tokens)

    @property
    def looks_back(self) -> bool:
        """True when the next draw cannot be told before the token before it is known.

        Penalties and mirostat do not make it so: a device goes on from what it has drawn.
        """
        return self._looks_back or self.grammar is not None

    def must_not_stop(self, position: int) -> bool:
        """True while the token at `position` is one of the first `min_tokens` of the output."""
        return position - self.num_prompt_tokens < self.min_tokens and len(self.stop_ids) > 0

    def draw(self, position: int) -> Draw | None:
        """How the token at `position` is drawn; None when it is simply the lowest id of a largest logit.

        Arrays are views: they hold until the next `note`.
        """
        sampling = self.sampling
        seen_ids, num_output = self._seen()
        bias_ids, bias_values = self.bias_ids, self.bias_values
        banned_ids = self.stop_ids if self.must_not_stop(position) else NO_IDS
        allowed_ids = self.allowed_ids
        if self.grammar is not None:
            # bans what must not stop, too, unless an end is the only way to go on
            allowed_ids, banned_ids = self.grammar.limits(may_stop=not len(banned_ids))
        if len(self._lone_words):
            banned_ids = np.union1d(banned_ids, self._lone_words)
        if self.history is not None:
            if self._dry is not None:
                dry_ids, penalties = self._dry.biases(self.history)
                bias_ids = np.concatenate((bias_ids, dry_ids))
                bias_values = np.concatenate((bias_values, penalties))
            if words := self._bad_words.banned(self.history):
                banned_ids = np.union1d(banned_ids, np.array(words, dtype=np.int64))
        num_named = len(seen_ids) + len(bias_ids) + len(banned_ids) + len(allowed_ids)
        is_greedy = sampling.temperature == 0.0
        tally = self._tally(position)
        if is_greedy and not num_named and sampling.logprobs is None and tally is None:
            return None
        draw = Draw(
            temperature=sampling.temperature,
            uniform=uniform(sampling.seed or 0, position),
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            seen_ids=seen_ids,
            num_output=num_output,
            bias_ids=bias_ids,
            bias_values=bias_values,
            banned_ids=banned_ids,
            num_top=sampling.logprobs,
            allowed_ids=allowed_ids,
            tally=tally,
        )
        return evolve(draw, **self._by_cuts(position)) if self._needs_cuts else draw

    def _seen(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that the penalties are about, and how often each is in the output."""
        if self.counts is not None:
            return self.counts.arrays()
        sampling = self.sampling
        if self.history is not None and sampling.has_penalties:
            return self.history.count_last(sampling.repeat_last_n, self.num_prompt_tokens)
        return NO_IDS, NO_IDS

    def _tally(self, position: int) -> Tally | None:
        """Whose tokens the penalties are about; None: there are no penalties."""
        is_output = position >= self.num_prompt_tokens
        if self.counts is not None:
            return Tally(self.counts, self._num_known, position, is_output)
        sampling = self.sampling
        if self.history is None or not sampling.has_penalties or sampling.repeat_last_n <= 0:
            return None
        size = sampling.repeat_last_n
        window = Window(size, self.num_prompt_tokens, self.history.last(size))
        return Tally(self.history, self._num_known, position, is_output, window)

    def _by_cuts(self, position: int) -> dict[str, Any]:
        sampling = self.sampling
        mirostat = None
        if sampling.mirostat is not None and sampling.temperature > 0.0:
            assert self.mu is not None
            given = sampling.mirostat
            tally = Tally(self, self._num_known, position, position >= self.num_prompt_tokens)
            mirostat = MirostatDraw(given.version, given.tau, given.eta, self.mu, tally)
        return {
            "cuts": list_cuts(sampling, position) if sampling.temperature > 0.0 else (),
            "mirostat": mirostat,
            "is_processed": sampling.processed_logprobs and sampling.logprobs is not None,
        }


def _ids(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    return np.unique([token for token in tokens if 0 <= token < vocab_size]).astype(np.int64)


def needs_cuts(sampling: Sampling) -> bool:
    """True unless temperature, top-k, top-p and min-p, in this order, are all that there is to do."""
    return (
        sampling.typical_p < 1.0
        or sampling.top_n_sigma is not None
        or (sampling.xtc is not None and sampling.xtc.probability > 0.0)
        or sampling.dynatemp is not None
        or sampling.mirostat is not None
        or sampling.cuts != CUTS
        or (sampling.processed_logprobs and sampling.logprobs is not None)
    )


def list_cuts(sampling: Sampling, position: int) -> tuple[Cut, ...]:
    """The cuts that are made at a position, in their order; with mirostat, the temperature alone.

    `sampling.temperature` is above 0.
    """
    found = []
    for name in CUTS[:1] if sampling.mirostat is not None else sampling.cuts:
        match name:
            case "temperature" if sampling.dynatemp is not None:
                spread, exponent = sampling.dynatemp.spread, sampling.dynatemp.exponent
                found.append(Cut("dynatemp", sampling.temperature, spread, exponent))
            case "temperature":
                found.append(Cut(name, sampling.temperature))
            case "top_n_sigma" if sampling.top_n_sigma is not None:
                found.append(Cut(name, sampling.top_n_sigma))
            case "top_k" if sampling.top_k:
                found.append(Cut(name, sampling.top_k))
            case "typical_p" if sampling.typical_p < 1.0:
                found.append(Cut(name, sampling.typical_p))
            case "top_p" if sampling.top_p < 1.0:
                found.append(Cut(name, sampling.top_p))
            case "min_p" if sampling.min_p > 0.0:
                found.append(Cut(name, sampling.min_p))
            case "xtc" if sampling.xtc is not None:
                if uniform(sampling.seed or 0, position, XTC) < sampling.xtc.probability:
                    found.append(Cut(name, sampling.xtc.threshold))
    return tuple(found)
