"""What a grammar adds to a token: `python -m drivers.bench.grammar`, JSON lines for `llmos bench grammar`.

What a step does for its sampling rows besides the forward pass: masks, the draw in C, taking the token in.
One thread, its own processor time. Rows with a grammar and rows without are measured in turn, with the same
logits; medians are reported. The vocabulary is made up: bytes, marks, and words of random letters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from attrs import frozen
from llguidance import LLTokenizer, TokenizerWrapper

from drivers.bench.rows import Measured, Plan, Started
from drivers.model.grammar import GrammarTokens
from drivers.model.sampler import Sampler
from llmos.device import Bind, Sampling
from native.sampling import Draw, bind_sample

__all__ = ["GRAMMARS", "GrammarMeasurement", "make_tokens", "measure_grammar"]

END = 256  # the token behind the bytes
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
    },
    "required": ["name", "age", "tags"], "additionalProperties": False,
}  # fmt: skip
GRAMMARS = {
    "JSON object": 'start: %json {"type": "object"}',
    "JSON schema": f"start: %json {json.dumps(_PERSON)}",
    "regex": r"start: /[0-9]{4}-[0-9]{2}-[0-9]{2}( [a-z]+)*/",
}


@frozen
class GrammarMeasurement:
    """One grammar at one batch size: medians over steps."""

    grammar: str
    batch: int
    vocab_size: int
    compile_microseconds: float  # beside steps, in a thread of the driver
    microseconds: float  # for a token
    free_microseconds: float  # for a token without a grammar
    overhead_microseconds: float  # of a token: of steps taken in turn
    steps: int

    def rows(self) -> Iterator[Measured]:
        """As rows of a benchmark."""
        case = f"vocabulary of {self.vocab_size:,}: {self.grammar}, batch {self.batch}"
        ratio = self.free_microseconds / self.microseconds
        against = f"a token without: {self.free_microseconds:.1f} µs"
        yield Measured(case, "added to a token", self.overhead_microseconds, "µs", against, ratio, self.steps)
        if self.batch == 1:
            yield Measured(case, "compiled in", self.compile_microseconds / 1e3, "ms", "", 1.0, 1)


class _Vocabulary:
    """A tokenizer as llguidance wants one."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id, self.bos_token_id = END, None
        self.special_token_ids = [END]

    def __call__(self, text: str | bytes) -> list[int]:
        """One token for each byte."""
        return list(text.encode() if isinstance(text, str) else text)


def make_tokens(vocab_size: int) -> GrammarTokens:
    """A vocabulary of at least 257 tokens, the same each time."""
    rng = np.random.default_rng(0)
    tokens = [bytes([byte]) for byte in range(END)] + [b"<end>"]
    known = set(tokens)
    while len(tokens) < vocab_size:
        word = (b" " if rng.random() < 0.5 else b"") + rng.integers(97, 123, rng.integers(2, 9)).astype(
            np.uint8
        ).tobytes()
        if word not in known:
            known.add(word)
            tokens.append(word)
    return GrammarTokens(LLTokenizer(TokenizerWrapper(_Vocabulary(tokens))))


def measure_grammar(
    name: str, batch: int, vocab_size: int, steps: int, tokens: GrammarTokens
) -> GrammarMeasurement:
    """Take steps of rows that follow a grammar, and of rows that do not, in turn.

    A row whose output has come to its end is bound anew, which is no part of a step.
    """
    source, rng = GRAMMARS[name], np.random.default_rng(0)
    began = time.thread_time()
    compiled = tokens.compile(source)
    compiling = time.thread_time() - began
    samplers = {True: Sampler(vocab_size), False: Sampler(vocab_size)}
    positions = {follows: [1] * batch for follows in samplers}
    times = []
    for step in range(steps):
        logits = (2.5 * rng.standard_normal((batch, vocab_size))).astype(np.float32)
        spent = {}
        for follows, sampler in samplers.items():
            for asid, position in enumerate(positions[follows]):
                if position == 1:
                    sampler.bind(make_bind(asid, step), compiled if follows else None)
            rows = list(enumerate(positions[follows]))
            began = time.thread_time()
            draws = sampler.draws(rows)
            seconds = time.thread_time() - began
            choices = []
            for row, draw in zip(logits, draws, strict=True):
                run = bind_sample(row, draw or Draw())
                run()  # finds no memory yet, which a driver has
                began = time.thread_time()
                choices.append(run())
                seconds += time.thread_time() - began
            began = time.thread_time()
            sampled = sampler.record(choices, rows, sampler.states(rows))
            spent[follows] = (seconds + time.thread_time() - began) / batch
            for asid, outcome in enumerate(sampled):
                positions[follows][asid] = 1 if outcome.token == END else positions[follows][asid] + 1
        times.append((spent[True], spent[False], spent[True] - spent[False]))
    followed, free, overhead = (1e6 * statistics.median(column) for column in zip(*times, strict=True))
    return GrammarMeasurement(name, batch, vocab_size, compiling * 1e6, followed, free, overhead, steps)


def make_bind(asid: int, seed: int) -> Bind:
    """A space with one token of prompt."""
    sampling = Sampling(temperature=0.8, seed=seed * 1000 + asid)
    return Bind(asid, sampling, (65,), 1, stop_token_ids=(END,))


def measure_all(
    names: Sequence[str], batches: Sequence[int], vocabularies: Sequence[int], steps: int
) -> Iterator[GrammarMeasurement]:
    """Every combination."""
    for vocab_size in vocabularies:
        tokens = make_tokens(vocab_size)
        for name in names:
            for batch in batches:
                yield measure_grammar(name, batch, vocab_size, steps, tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a line, as soon as it is measured; see drivers/bench/rows.py."""
    parser = argparse.ArgumentParser(prog="drivers.bench.grammar", description=__doc__.splitlines()[0])
    parser.add_argument("--grammars", nargs="+", choices=tuple(GRAMMARS), default=tuple(GRAMMARS))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 32))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=(2560, 128_256))
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(arguments)
    num_cases = len(options.vocabularies) * len(options.grammars) * len(options.batches)
    emit(Plan(num_cases))
    for found in measure_all(options.grammars, options.batches, options.vocabularies, options.steps):
        emit(Started(found.grammar))
        for row in found.rows():
            emit(row)
    return 0


def emit(line: Plan | Started | Measured) -> None:
    """Write a line."""
    print(msgspec.json.encode(line).decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
