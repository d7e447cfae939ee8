"""The rows of a step that run: what is drawn for them, and what their choices come to."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from drivers.model.sampler import Sampler
from drivers.model.sampling_state import SamplingState
from drivers.step_results import StepResults
from llmos.device import Row, TokenLogprobs
from native.sampling import Choice, Draw

__all__ = ["StepWork"]


@attrs.define(eq=False)
class StepWork:
    """Good rows of a step, from the moment that they are handed to the model until their tokens are known.

    By then a space may have been released, or bound to sample in another way: what its token is counted in
    is what it was drawn by.
    """

    rows: dict[int, Row]  # by their index in the step; one whose token only the device knows has none
    sampling: list[int]  # indices of those that sample
    wanted: list[tuple[int, int]]  # their spaces, and the positions of the new tokens
    states: list[SamplingState | None]  # of those spaces
    draws: list[Draw | None]  # for each row of logits

    @classmethod
    def prepare(cls, sampler: Sampler, rows: dict[int, Row]) -> StepWork:
        """Take in the tokens of rows, and say how each row of logits is drawn. Mutates the sampler."""
        sampling = [index for index, row in rows.items() if row.sample]
        wanted = [(rows[index].asid, rows[index].start + rows[index].num_tokens) for index in sampling]
        for row in rows.values():
            sampler.observe(row.asid, row.start, row.tokens)
        states, own = sampler.states(wanted), iter(sampler.draws(wanted))
        draws: list[Draw | None] = []
        for row in rows.values():
            draws += sampler.scores(row.asid, row.targets)
            draws += [next(own)] if row.sample else []
        return cls(rows, sampling, wanted, states, draws)

    def take(
        self, sampler: Sampler, choices_made: Sequence[Choice], results: StepResults
    ) -> dict[int, tuple[int, int]]:
        """Count choices, one for each row of logits, and note what rows have come to.

        Returns:
            For each space that has a new token: its position, and the token.
        """
        made = iter(choices_made)
        choices = []
        for index, row in self.rows.items():
            if row.targets:
                given = [next(made) for _ in row.targets]
                results.scores[index] = tuple(
                    TokenLogprobs(each.logprob, each.top_ids, each.top_logprobs, each.rank) for each in given
                )
                if any(each.num_bad for each in given):
                    results.faults[index] = (
                        f"logits are not finite between {row.start} and {row.start + len(given)}"
                    )
            choices += [next(made)] if row.sample else []
        sampled: dict[int, tuple[int, int]] = {}
        for index, (asid, position), each in zip(
            self.sampling, self.wanted, sampler.record(choices, self.wanted, self.states), strict=True
        ):
            if each.token is None:
                results.faults.setdefault(index, each.fault or "no token was sampled")
            elif index not in results.faults:
                results.tokens[index], results.logprobs[index] = each.token, each.logprobs
                sampled[asid] = (position, each.token)
                if each.mu is not None:
                    results.mus[index] = each.mu
        return sampled
