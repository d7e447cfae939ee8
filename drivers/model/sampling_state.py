"""What the sampler remembers of one space: its parameters, its last token, its counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from drivers.model.randomness import uniform
from llmos.device import Bind
from native.sampling import Draw

__all__ = ["SamplingState"]

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

    def __init__(self, bind: Bind, vocab_size: int) -> None:
        self.sampling = sampling = bind.sampling
        self.num_prompt_tokens = bind.num_prompt_tokens
        self.min_tokens = bind.min_tokens
        self.last_token = bind.tokens[-1] if bind.tokens else None
        self.stop_ids = np.array(
            [token for token in bind.stop_token_ids if 0 <= token < vocab_size], dtype=np.int64
        )
        bias = {token: value for token, value in sampling.logit_bias.items() if 0 <= token < vocab_size}
        self.bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self.bias_values = np.fromiter(bias.values(), dtype=np.float64, count=len(bias))
        self.counts = TokenCounts(vocab_size) if sampling.has_penalties else None
        self._num_known = 0
        self.note(0, bind.tokens)

    def note(self, start: int, tokens: Sequence[int]) -> None:
        """Take in tokens at positions start, start + 1, ...; those already known are passed over."""
        fresh = tokens[max(0, self._num_known - start) :]
        if not fresh:
            return
        if self.counts is not None:
            num_prompt = max(0, self.num_prompt_tokens - (start + len(tokens) - len(fresh)))
            self.counts.add(fresh[:num_prompt], output=False)
            self.counts.add(fresh[num_prompt:], output=True)
        self._num_known = start + len(tokens)

    def must_not_stop(self, position: int) -> bool:
        """True while the token at `position` is one of the first `min_tokens` of the output."""
        return position - self.num_prompt_tokens < self.min_tokens and len(self.stop_ids) > 0

    def draw(self, position: int) -> Draw | None:
        """How the token at `position` is drawn; None when it is simply the lowest id of a largest logit.

        Arrays are views: they hold until the next `note`.
        """
        sampling, is_banned = self.sampling, self.must_not_stop(position)
        is_adjusted = self.counts is not None or len(self.bias_ids) > 0 or is_banned
        if sampling.temperature == 0.0 and not is_adjusted and sampling.logprobs is None:
            return None
        seen_ids, num_output = (NO_IDS, NO_IDS) if self.counts is None else self.counts.arrays()
        return Draw(
            sampling.temperature,
            uniform(sampling.seed or 0, position),
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
            seen_ids,
            num_output,
            self.bias_ids,
            self.bias_values,
            self.stop_ids if is_banned else NO_IDS,
            sampling.logprobs,
        )
