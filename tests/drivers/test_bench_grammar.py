"""What a grammar costs is measured beside rows that follow none."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from drivers.bench import grammar
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
    """The command prints a line for every combination; of one step, the overhead is the difference."""
    arguments = ["--batches", "1", "3", "--vocabularies", "600", "--steps", "1"]
    assert grammar.main(arguments) == 0
    rows = [
        msgspec.json.decode(line, type=grammar.GrammarMeasurement)
        for line in capsys.readouterr().out.splitlines()
    ]
    assert [(row.grammar, row.batch) for row in rows] == [
        (name, batch) for name in grammar.GRAMMARS for batch in (1, 3)
    ]
    for row in rows:
        assert row.compile_microseconds > 0
        assert row.overhead_microseconds == pytest.approx(row.microseconds - row.free_microseconds)
