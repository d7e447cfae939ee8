"""What a grammar costs is measured beside rows that follow none."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from drivers.bench import grammar
from drivers.bench.rows import Measured, Plan, Started
from drivers.model.grammar import Grammar


def test_vocabulary_is_whole_and_the_same() -> None:
    """Bytes, an end, and words; what is measured is about as many tokens as it says."""
    tokens = grammar.make_tokens(600)
    assert tokens.tokenizer.vocab_size == 600
    allowed = Grammar(tokens.compile("start: /[a-z ]+/"), np.array([grammar.END])).allowed_ids()
    assert len(allowed) == 27 + 600 - 257
    assert list(Grammar(tokens.compile('start: "" | "b"'), np.array([grammar.END])).allowed_ids()) == [
        98,
        grammar.END,
    ]


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a line for every combination; three numbers of compiling."""
    arguments = ["--batches", "1", "3", "--vocabularies", "600", "--steps", "1"]
    assert grammar.main(arguments) == 0
    lines = [
        msgspec.json.decode(line, type=Plan | Started | Measured)
        for line in capsys.readouterr().out.splitlines()
    ]
    assert lines[0] == Plan(6)
    added = [line for line in lines if isinstance(line, Measured) and line.metric == "added to a token"]
    assert [line.case for line in added] == [
        f"vocabulary of 600: {name}, batch {batch}" for name in grammar.GRAMMARS for batch in (1, 3)
    ]
    compiled = [line for line in lines if isinstance(line, Measured) and line.metric == "compiled in"]
    assert len(compiled) == 3
    assert all(line.value > 0 for line in compiled)


def test_of_one_step_the_overhead_is_the_difference() -> None:
    """Rows that follow a grammar less rows that do not."""
    found = grammar.measure_grammar("regex", 2, 600, 1, grammar.make_tokens(600))
    assert found.overhead_microseconds == pytest.approx(found.microseconds - found.free_microseconds)
