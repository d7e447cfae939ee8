"""`llmos bench grammar`: rows of both kinds, from real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.bench import grammar
from llmos.bench.report import read_rows
from syscalls.text.grammar import explain_bad_grammar


def test_grammars_are_sound_and_never_the_same() -> None:
    """What was compiled before would not be compiled again."""
    for case in grammar.CASES:
        sources = [case.make(number, 3) for number in range(3)]
        assert len(set(sources)) == 3
        assert [explain_bad_grammar(source) for source in sources] == [None] * 3


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quick run: what is added to a token, and what a neighbour waited."""
    path = tmp_path / "rows.jsonl"
    assert grammar.main(is_quick=True, num_runs=1, json_path=str(path)) == 0
    assert "longest wait" in capsys.readouterr().out
    rows = read_rows([path])
    assert {row.metric for row in rows} == {
        "added to a token", "compiled in", "longest wait", "its own first token"
    }  # fmt: skip
    (longest,) = [row for row in rows if row.metric == "longest wait"]
    assert longest.value > 0
