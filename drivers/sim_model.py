"""The simulated model: a hash of the whole context stands for attention over it.

The state at position p is `mix(state at p - 1, token p)`, and the next token is a function of the state, the
position and the sampling parameters. One wrong token, page or position anywhere in a context therefore
changes everything that follows, as it would in a real model, at a cost of O(1) per token.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import attrs

from llmos.device import Bind, EmbeddingInfo, ModelInfo, Pooling, Sampling, TokenLogprobs

VECTOR_SIZE = 8  # numbers in a vector
ROOT_STATE = 0x243F6A8885A308D3  # the state before position 0
_MASK = (1 << 64) - 1
OTHER_FIELDS = (
    "typical_p", "top_n_sigma", "repeat_last_n", "dry", "xtc", "dynatemp", "mirostat", "cuts", "bad_words",
    "allowed_token_ids", "grammar",
)  # fmt: skip
OTHER_DEFAULTS = [getattr(Sampling(), name) for name in OTHER_FIELDS]


def mix(state: int, value: int) -> int:
    """Fold `value` into a 64-bit state (the finaliser of splitmix64)."""
    x = (state * 0x9E3779B97F4A7C15 + value + 0xD1B54A32D192ED03) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def sampling_key(sampling: Sampling) -> int:
    """Digest of the parameters that may change the outcome; the seed counts only when there is chance."""
    key = 0
    if sampling.temperature > 0:
        for value in (sampling.temperature, sampling.top_p, sampling.min_p):
            key = mix(key, round(value * 1e6))
        key = mix(mix(key, sampling.top_k), sampling.seed or 0)
    if sampling.has_penalties:
        for value in (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty):
            key = mix(key, round(value * 1e6))
    for token, bias in sorted(sampling.logit_bias.items()):
        key = mix(mix(key, token), round(bias * 1e6))
    others = [getattr(sampling, name) for name in OTHER_FIELDS]
    if others != OTHER_DEFAULTS:
        key = mix(key, zlib.crc32(repr(others).encode()))
    return key


def next_mu(mu: float | None, state: int) -> float:
    """What stands for mirostat's mu: a number in [0, 1) that depends on the logits of all samples so far."""
    return mix(state, round((mu or 0.0) * 2**32)) % 2**32 / 2**32


@attrs.frozen
class SimModel:
    """What a simulated device computes.

    `eos_every` n: an end token comes on average once in n tokens (0: never). No other draw yields one.
    """

    vocab_size: int = 512
    eos_token_ids: tuple[int, ...] = ()
    eos_every: int = 0

    def info(self, name: str, path: str, max_model_len: int, encodes: bool) -> ModelInfo:
        """What the device says of it; an encoder only makes vectors."""
        return ModelInfo(
            name=name,
            path=path,
            architecture="sim",
            hash=f"{mix(self.vocab_size, self.eos_every):016x}",
            vocab_size=self.vocab_size,
            max_model_len=max_model_len,
            eos_token_ids=self.eos_token_ids,
            dtype="sim",
            num_parameters=0,
            kernels="sim",
            generates=not encodes,
            embedding=EmbeddingInfo(VECTOR_SIZE, ("mean", "cls") if encodes else ("last", "mean")),
        )

    def next_token(
        self,
        state: int,
        position: int,
        bind: Bind,
        penalty_state: int,
        mu: float | None = None,
        key: int | None = None,
    ) -> int:
        """Sample the token at `position`, given the state at `position - 1`.

        `penalty_state` sums `penalty_term` over the history; it counts only under penalties. Stop tokens are
        passed over while fewer than `bind.min_tokens` tokens were sampled. `key` is the `sampling_key`, of
        who has it already.
        """
        draw = mix(mix(state, sampling_key(bind.sampling) if key is None else key), position)
        if bind.sampling.has_penalties:
            draw = mix(draw, penalty_state)
        if mu is not None:
            draw = mix(draw, round(mu * 2**32))
        is_held = position - bind.num_prompt_tokens < bind.min_tokens
        return self._settle(draw, frozenset(bind.stop_token_ids) if is_held else frozenset())

    def tokens_of(self, draws: Sequence[int]) -> list[int]:
        """What draws come to where no stop token is barred: each as at the end of `next_token`."""
        size, ends, every = self.vocab_size, self.eos_token_ids, self.eos_every
        tokens = [draw % size for draw in draws]
        if not ends:
            return tokens
        for index, draw in enumerate(draws):
            if tokens[index] in ends or (every and (draw >> 32) % every == 0):
                tokens[index] = self._settle(draw, frozenset())
        return tokens

    def _settle(self, draw: int, barred: frozenset[int]) -> int:
        """The token that a draw comes to."""
        ends, size = self.eos_token_ids, self.vocab_size
        if self.eos_every and ends and (draw >> 32) % self.eos_every == 0:
            end = ends[draw % len(ends)]
            if end not in barred:
                return end
        while (token := draw % size) in barred or token in ends:
            draw = mix(draw, 1)
        return token

    def logprobs(self, token: int, state: int, count: int) -> TokenLogprobs:
        """Make up log-probabilities: the sampled token is the most likely, its neighbours follow."""
        top_ids = tuple((token + i) % self.vocab_size for i in range(count))
        first = -((state >> 8) % 1000) / 1000
        return TokenLogprobs(first, top_ids, tuple(first - i for i in range(count)))

    def vector(self, pooled: int, pooling: Pooling) -> bytes:
        """What an input comes to: `pooled` is its last state, or for a mean a fold over all of them."""
        digest = mix(mix(pooled, zlib.crc32(pooling.kind.encode())), pooling.normalise)
        numbers = [mix(digest, index) % 2**24 / 2**23 - 1 for index in range(VECTOR_SIZE)]
        return struct.pack(f"<{VECTOR_SIZE}f", *numbers)

    def expected_vector(self, tokens: Sequence[int], pooling: Pooling) -> bytes:
        """Tell what a quiet run of one input ends with: the whole truth, without pages, batches or steps."""
        state, pooled = ROOT_STATE, 0
        for token in tokens:
            state = mix(state, token)
            pooled = mix(pooled, state)
        return self.vector(pooled if pooling.kind == "mean" else state, pooling)

    def expected_tokens(
        self,
        prompt: tuple[int, ...],
        num_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008 - a frozen value
        stop_token_ids: tuple[int, ...] = (),
        min_tokens: int = 0,
    ) -> tuple[int, ...]:
        """Tell what a quiet run of one process emits: the whole truth, without pages, batches or steps.

        Ends after `num_tokens`, or with the first token out of `stop_token_ids`, which is included.
        """
        bind = Bind(0, sampling, prompt, len(prompt), stop_token_ids, min_tokens)
        state, penalty_state, tokens = ROOT_STATE, 0, list(prompt)
        mu: float | None = None
        for position in range(len(prompt) + num_tokens):
            if position >= len(prompt):
                if sampling.mirostat is not None:
                    mu = next_mu(mu, state)
                tokens.append(self.next_token(state, position, bind, penalty_state, mu))
                if tokens[-1] in stop_token_ids:
                    break
            state = mix(state, tokens[position])
            penalty_state = penalty_state + penalty_term(tokens[position], position, len(prompt)) & _MASK
        return tuple(tokens[len(prompt) :])


def penalty_term(token: int, position: int, num_prompt_tokens: int) -> int:
    """What one token of the history adds to the penalty state; order does not matter, as with counts."""
    return mix(token, position >= num_prompt_tokens)
