"""From logits to tokens. A row's sample is a function of its logits, its space's state, seed and position.

What a token depends on besides its logits is a `Draw`; who made the logits carries it out: native/cpu within
its forward pass, other devices by reference_sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from drivers.model.grammar import CompiledGrammar
from drivers.model.reference_sampler import choose_tokens
from drivers.model.sampling_state import SamplingState
from drivers.ops.interface import Ops
from drivers.ops.reference import ReferenceOps
from llmos.device import Bind, TokenLogprobs
from native.sampling import Choice, Draw

__all__ = ["Sampled", "Sampler"]


class Sampled(NamedTuple):
    """One row's outcome: a token, or a fault that says why there is none."""

    token: int | None
    logprobs: TokenLogprobs | None
    fault: str | None
    mu: float | None = None  # of mirostat, after this token


class Sampler:
    """Samples for all spaces of a driver, and keeps what each space's sampling depends on.

    A driver's step calls, in this order: `bind` and `release` for its edits, `observe` for every row with
    tokens of its own, `draws` once for the sampling rows, and `record` with what the model chose.
    """

    def __init__(self, vocab_size: int, ops: Ops | None = None) -> None:
        self._vocab_size = vocab_size
        self._ops = ops or ReferenceOps()
        self._states: dict[int, SamplingState] = {}

    @property
    def num_spaces(self) -> int:
        """Spaces bound and not released."""
        return len(self._states)

    def bind(self, bind: Bind, grammar: CompiledGrammar | None = None) -> None:
        """Set, or set again, how a space samples; its counts start anew from `bind.tokens`.

        Args:
            bind: says how.
            grammar: the one that `bind.grammar` names, if it does.
        """
        self._states[bind.asid] = SamplingState(bind, self._vocab_size, grammar)

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
        """Choose the next token of each row, and count it: `draws`, a choice for each, `record`.

        Args:
            logits: [num_rows, vocab_size], fp32, raw from the model.
            rows: for each, its space and the absolute position that the new token will have: the row's
                `start + num_tokens`.

        Returns:
            One outcome for each row, in order. Logits that are not finite, and a space that was never bound,
            are that row's fault alone.
        """
        return self.record(choose_tokens(logits, self.draws(rows), self._ops), rows, self.states(rows))

    def draws(self, rows: Sequence[tuple[int, int]]) -> list[Draw | None]:
        """For each row as `sample` takes them: how its token is drawn, or None: plain greedy, or not bound.

        The arrays are views of what the spaces remember: `observe` comes before, `record` after their use.
        """
        states = zip(self.states(rows), rows, strict=True)
        return [None if state is None else state.draw(position) for state, (_asid, position) in states]

    def states(self, rows: Sequence[tuple[int, int]]) -> list[SamplingState | None]:
        """What `draws` of rows depends on, for `record`: by then a space may be somebody else's."""
        return [self._states.get(asid) for asid, _position in rows]

    def scores(self, asid: int, targets: Sequence[int]) -> list[Draw]:
        """Draws that tell how likely a row's `targets` are, tokens that are known already."""
        state = self._states.get(asid)
        num_top = None if state is None else state.sampling.prompt_logprobs
        return [Draw(given=token, num_top=num_top or 0) for token in targets]

    def record(
        self,
        choices: Sequence[Choice],
        rows: Sequence[tuple[int, int]],
        states: Sequence[SamplingState | None],
    ) -> list[Sampled]:
        """Outcomes of rows whose tokens were chosen as `draws` said; counts the tokens in their states."""
        results: list[Sampled] = []
        for choice, (asid, position), state in zip(choices, rows, states, strict=True):
            if state is None:
                results.append(Sampled(None, None, f"space {asid} has no sampling parameters"))
            elif choice.num_bad:
                message = (
                    f"{choice.num_bad} of {self._vocab_size} logits are not finite at position {position - 1}"
                )
                results.append(Sampled(None, None, message))
            elif choice.token < 0:
                results.append(Sampled(None, None, f"no token is allowed at position {position}"))
            elif state.grammar is not None and state.grammar.problem is not None:
                results.append(Sampled(None, None, state.grammar.problem))
            else:
                state.note(position, (choice.token,))
                state.last_token = choice.token
                wanted = state.sampling.logprobs is not None
                logprobs = (
                    TokenLogprobs(choice.logprob, choice.top_ids, choice.top_logprobs) if wanted else None
                )
                if choice.mu is not None:
                    state.mu = choice.mu
                results.append(Sampled(choice.token, logprobs, None, state.mu))
        return results
