"""What a simulated device keeps of each space that samples, or makes a vector."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from drivers.sim_model import penalty_term, sampling_key
from llmos.device import Bind


@attrs.define(eq=False)
class SimSampler:
    """How one space samples, and what it has counted."""

    bind: Bind
    num_counted: int  # positions below it are in `penalty_state`
    penalty_state: int
    sampled: tuple[int, int] | None = None  # position and token
    mu: float | None = None
    num_pooled: int = 0  # positions folded into `pooled`, of a space that makes a mean
    pooled: int = 0
    has_failed: bool = False  # its last row was faulty: there is no sample to feed
    key: int = attrs.field(init=False)
    is_plain: bool = attrs.field(init=False)  # state, key and position decide what it samples
    ordinary_at: int = -1  # where a row that feeds the last sample may be computed like all ordinary ones

    def __attrs_post_init__(self) -> None:
        sampling = self.bind.sampling
        self.key = sampling_key(sampling)
        self.is_plain = (
            not sampling.has_penalties
            and sampling.mirostat is None
            and sampling.logprobs is None
            and self.bind.pooling is None
        )

    def note_sample(self, position: int, token: int) -> None:
        """A token was sampled for a position, and let into the history."""
        self.sampled = (position, token)
        self.count(position, token)
        bind = self.bind
        is_barring = bool(bind.stop_token_ids) and position + 1 < bind.num_prompt_tokens + bind.min_tokens
        is_ordinary = self.is_plain and not is_barring and self.num_counted == position + 1
        self.ordinary_at = position if is_ordinary else -1

    def fail(self) -> None:
        """Its row was faulty."""
        self.has_failed, self.ordinary_at = True, -1

    def count(self, position: int, token: int) -> None:
        """Let a token into the history, once."""
        if position == self.num_counted:
            if self.bind.sampling.has_penalties:  # else nobody asks for the state
                self.penalty_state += penalty_term(token, position, self.bind.num_prompt_tokens)
            self.num_counted += 1

    def count_all(self, start: int, tokens: Sequence[int]) -> None:
        """Let tokens from position `start` on into the history, each once."""
        if self.bind.sampling.has_penalties:
            for position, token in enumerate(tokens, start):
                self.count(position, token)
        elif start <= self.num_counted < start + len(tokens):
            self.num_counted = start + len(tokens)
