"""The rows of a simulated device's steps: what is computed of each, into memory and out of it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from drivers.sim_hash import mix_lanes, pack_lanes, unpack_lanes
from drivers.sim_memory import ProtocolViolation, SimFrame, SimMemory, SimSpace
from drivers.sim_model import SimModel, mix, next_mu
from drivers.sim_sampler import SimSampler
from drivers.step_results import StepResults
from llmos.cost import StepWork, count_pairs
from llmos.device import Bind, Row, TokenLogprobs


def work_of(rows: Sequence[Row]) -> StepWork:
    """What a step's time depends on."""
    counts, starts = [len(row.tokens) or 1 for row in rows], [row.start for row in rows]
    num_tokens, num_rows = sum(counts), len(counts)
    num_keys = sum(starts) + num_tokens
    num_pairs = num_keys if num_tokens == num_rows else sum(map(count_pairs, starts, counts))
    return StepWork(num_tokens, num_rows, num_keys, num_pairs)


@attrs.define(eq=False, kw_only=True)
class _Decodes:
    """Ordinary rows of a step, a column for each thing that is needed of them."""

    indices: list[int] = attrs.field(factory=list)
    samplers: list[SimSampler] = attrs.field(factory=list)
    spaces: list[SimSpace] = attrs.field(factory=list)
    tails: list[list[SimFrame]] = attrs.field(factory=list)  # of the spaces: the new states go there
    states: list[int] = attrs.field(factory=list)  # before the token that is fed
    inputs: list[int] = attrs.field(factory=list)
    positions: list[int] = attrs.field(factory=list)  # of the token that is sampled
    keys: list[int] = attrs.field(factory=list)


@attrs.define(eq=False, kw_only=True)
class SimRows:
    """Computes the rows of steps.

    Args:
        model: what is computed.
        memory: where states are read and written.
        max_model_len: longest context in tokens.
        encodes: of an encoder, whose texts come whole.
        faulty_token: a row that carries this token fails.
    """

    model: SimModel
    memory: SimMemory
    max_model_len: int
    encodes: bool
    faulty_token: int | None
    samplers: dict[int, SimSampler] = attrs.field(factory=dict, init=False)  # by space

    def bind(self, bind: Bind) -> None:
        """Let a space sample; what it sampled last stays, to be fed. Raises ProtocolViolation."""
        if bind.num_prompt_tokens > len(bind.tokens):
            raise ProtocolViolation(
                f"space {bind.asid} bound with {bind.num_prompt_tokens} prompt tokens of {len(bind.tokens)}"
            )
        if bind.sampling.temperature > 0 and bind.sampling.seed is None:
            raise ProtocolViolation(f"space {bind.asid} samples at a temperature, and its seed is not set")
        previous = self.samplers.get(bind.asid)
        sampler = SimSampler(bind, 0, 0, previous.sampled if previous else None, bind.mu)
        sampler.count_all(0, bind.tokens)
        sampler.num_pooled, sampler.pooled = bind.num_summed, int.from_bytes(bind.total)
        self.samplers[bind.asid] = sampler

    def run(self, rows: Sequence[Row]) -> StepResults:
        """Compute a step's rows, each of a space of its own. Raises ProtocolViolation.

        Those that feed the last sample and want the next one, and nothing else, are computed together. It
        makes no difference to the others: what a row writes is nobody else's to read.
        """
        results, decodes = StepResults(len(rows)), _Decodes()
        for index, row in enumerate(rows):
            if row.tokens or not row.sample or not self._gather(index, row, decodes):
                self._run(index, row, results)
        if decodes.indices:
            self._decode(decodes, results)
        return results

    def _gather(self, index: int, row: Row, decodes: _Decodes) -> bool:
        """Add an ordinary row to those that are computed together.

        Returns:
            False: it is none, or something may be wrong with it; nothing was done.
        """
        start, sampler = row.start, self.samplers.get(row.asid)
        if sampler is None or sampler.ordinary_at != start or row.targets or row.pool:
            return False
        sampled = sampler.sampled
        if sampled is None or sampled[1] == self.faulty_token or start >= self.max_model_len:
            return False
        space = self.memory.place_next(row.asid, start)
        if space is None:
            return False
        decodes.indices.append(index)
        decodes.samplers.append(sampler)
        decodes.spaces.append(space)
        decodes.tails.append(space.tail)
        decodes.states.append(space.last_state[1])
        decodes.inputs.append(sampled[1])
        decodes.positions.append(start + 1)
        decodes.keys.append(sampler.key)
        return True

    def _decode(self, decodes: _Decodes, results: StepResults) -> None:
        """Feed one token to each of some spaces, and sample the next."""
        num_rows, positions = len(decodes.indices), decodes.positions
        lanes = mix_lanes(pack_lanes(decodes.states), pack_lanes(decodes.inputs), num_rows)
        states = unpack_lanes(lanes, num_rows)
        keyed = mix_lanes(lanes, pack_lanes(decodes.keys), num_rows)
        draws = unpack_lanes(mix_lanes(keyed, pack_lanes(positions), num_rows), num_rows)
        tokens = self.model.tokens_of(draws)
        for space, tail, position, state in zip(
            decodes.spaces, decodes.tails, positions, states, strict=True
        ):
            space.num_checked, space.last_state = position, (position, state)
            for frame in tail:
                frame.after.append(state)
        for sampler, position, token in zip(decodes.samplers, positions, tokens, strict=True):
            sampler.sampled = (position, token)
            sampler.num_counted, sampler.ordinary_at = position + 1, position
        results.tokens.update(zip(decodes.indices, tokens, strict=True))

    def _run(self, index: int, row: Row, results: StepResults) -> None:
        """Compute any row."""
        if not row.tokens and self._sampler(row).has_failed:
            # Planned before the kernel could know; it fails too, and does not touch memory.
            results.faults[index] = "the sample that it feeds on has failed"
            return
        inputs = self._resolve(row)
        states = self._compute(row, inputs)
        if scores := self._score(row, states):
            results.scores[index] = scores
        vector = self._pool(row, states)
        if self.faulty_token in inputs:
            results.faults[index] = f"token {self.faulty_token} makes the simulated device fail"
            self._sampler(row).fail()
            return
        if vector is not None:
            results.vectors[index] = vector
        if row.sample:
            results.tokens[index], results.logprobs[index] = self._sample(row, states[-1])
            if (mu := self._sampler(row).mu) is not None:
                results.mus[index] = mu

    def _sampler(self, row: Row) -> SimSampler:
        if row.asid not in self.samplers:
            raise ProtocolViolation(f"space {row.asid} samples before it was bound")
        return self.samplers[row.asid]

    def _resolve(self, row: Row) -> tuple[int, ...]:
        """Turn empty tokens into the token that the space sampled last."""
        if row.tokens:
            low, high = min(row.tokens), max(row.tokens)
            if low < 0 or high >= self.model.vocab_size:
                raise ProtocolViolation(
                    f"space {row.asid} feeds token {low if low < 0 else high}; there are "
                    f"{self.model.vocab_size}"
                )
            return row.tokens
        sampled = self._sampler(row).sampled
        if sampled is None:
            raise ProtocolViolation(f"space {row.asid} feeds its last sample, and there is none")
        position, token = sampled
        if position != row.start:
            raise ProtocolViolation(
                f"space {row.asid} feeds its last sample at position {row.start}; it belongs at {position}"
            )
        return (token,)

    def _score(self, row: Row, states: list[int]) -> tuple[TokenLogprobs, ...]:
        if len(row.targets) > len(states):
            raise ProtocolViolation(
                f"space {row.asid} has {len(row.targets)} targets for {len(states)} tokens"
            )
        count = self._sampler(row).bind.sampling.prompt_logprobs or 0 if row.targets else 0
        return tuple(
            self.model.logprobs(token, state, count)
            for token, state in zip(row.targets, states, strict=False)
        )

    def _pool(self, row: Row, states: list[int]) -> bytes | None:
        """Fold what a row's positions yield into its space's vector; return that with the last row."""
        sampler = self.samplers.get(row.asid)
        pooling = sampler.bind.pooling if sampler is not None else None
        if sampler is None or pooling is None:
            if row.pool:
                raise ProtocolViolation(f"space {row.asid} makes no vector")
            return None
        if self.encodes and (row.start or not row.pool):
            raise ProtocolViolation(
                f"space {row.asid} of an encoder has a text from {row.start} that is not whole"
            )
        if row.sample or row.targets:
            raise ProtocolViolation(f"space {row.asid} makes a vector, and is to sample or score")
        if pooling.kind != "mean":
            return self.model.vector(states[-1], pooling) if row.pool else None
        if row.start > sampler.num_pooled:
            raise ProtocolViolation(
                f"space {row.asid} has summed {sampler.num_pooled} positions; the row starts at {row.start}"
            )
        new = states[max(0, sampler.num_pooled - row.start) :]
        for state in new:
            sampler.pooled = mix(sampler.pooled, state)
        sampler.num_pooled += len(new)
        return self.model.vector(sampler.pooled, pooling) if row.pool else sampler.pooled.to_bytes(8)

    def _compute(self, row: Row, inputs: tuple[int, ...]) -> list[int]:
        """Compute a row's positions into memory and return the state behind each."""
        end = row.start + len(inputs)
        if row.start < 0 or end > self.max_model_len:
            raise ProtocolViolation(
                f"space {row.asid} computes up to {end}; the limit is {self.max_model_len}"
            )
        state = self.memory.read(row.asid, row.start)
        states = [state]
        for token in inputs:
            state = mix(state, token)
            states.append(state)
        self.memory.write(row.asid, row.start, states)
        sampler = self.samplers.get(row.asid)
        if sampler is not None:
            sampler.count_all(row.start, inputs)
        return states[1:]

    def _sample(self, row: Row, state: int) -> tuple[int, TokenLogprobs | None]:
        sampler = self._sampler(row)
        position = row.start + row.num_tokens
        if position > sampler.num_counted:
            raise ProtocolViolation(
                f"space {row.asid} samples position {position}; its sampler knows {sampler.num_counted}"
            )
        penalty_state = sampler.penalty_state & ((1 << 64) - 1)
        if sampler.bind.sampling.mirostat is not None:
            sampler.mu = next_mu(sampler.mu, state)
        token = self.model.next_token(state, position, sampler.bind, penalty_state, sampler.mu, sampler.key)
        sampler.note_sample(position, token)
        count = sampler.bind.sampling.logprobs
        return token, None if count is None else self.model.logprobs(token, state, count)
