"""A grammar that would take its reader with it is refused by name, and takes nobody with it."""

from __future__ import annotations

import time

import pytest

from syscalls.text import grammar_process
from syscalls.text.grammar import SAFE_CHARACTERS, explain_bad_grammar, explain_bad_schema, json_grammar


def chain(length: int) -> str:
    """Rules that refer to each other in a row."""
    rules = [f'r{i}: "a" r{i + 1}' for i in range(length)]
    return "\n".join(["start: r0", *rules, f'r{length}: "z"'])


def schema_chain(length: int) -> dict[str, object]:
    """The same in a schema."""
    defs: dict[str, object] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{length}": {"type": "null"}}}


def test_what_overflows_the_stack() -> None:
    """In a thread of this process it would be the end of the tests, and of a kernel."""
    assert explain_bad_grammar(chain(40_000)) == "its rules are nested too deeply"
    problem = explain_bad_schema(schema_chain(30_000))
    assert problem == "its rules are nested too deeply"


def test_long_ones_that_are_sound_or_broken() -> None:
    """The complaint is the library's; one that is sound has none."""
    assert explain_bad_grammar(chain(1000)) is None
    assert explain_bad_schema(schema_chain(300)) is None
    problem = explain_bad_grammar(chain(1000).replace('"z"', "nowhere"))
    assert problem is not None
    assert "nowhere" in problem
    schema = {"type": "object", "properties": {f"p{i}": {"not": {}} for i in range(1000)}}
    assert len(json_grammar(schema)) > SAFE_CHARACTERS
    problem = explain_bad_schema(schema)
    assert problem is not None
    assert "not" in problem


def test_a_small_one_is_not_looked_at_for_long() -> None:
    """An error deep in a chain of rules is found as fast as at its beginning."""
    source = chain(250).replace('"z"', "nowhere")
    assert len(source) < SAFE_CHARACTERS
    began = time.thread_time()
    assert "nowhere" in (explain_bad_grammar(source) or "")
    assert time.thread_time() - began < 0.5  # of processor time; it was 2 s


def test_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended by the time that its process has used, and not looked at again."""
    monkeypatch.setattr(grammar_process, "MAX_CPU_SECONDS", 1)
    tokens = "\n".join(f"T{i}: T{i + 1}+" for i in range(2500))
    source = f'start: T0\n{tokens}\nT2500: "z"\n'
    assert explain_bad_grammar(source) == "it takes more than 1 seconds to compile"
    monkeypatch.setattr(grammar_process, "_validate", lambda source: pytest.fail("looked at twice"))
    assert explain_bad_grammar(source) == "it takes more than 1 seconds to compile"


def test_no_more_is_remembered_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten first."""
    seen: list[bytes] = []
    monkeypatch.setattr(grammar_process, "_found", {})
    monkeypatch.setattr(grammar_process, "NUM_REMEMBERED", 2)
    monkeypatch.setattr(grammar_process, "_validate", lambda source: seen.append(source) or "")
    for source in ("a", "b", "b", "c", "a"):
        assert grammar_process.validate_apart(source) == ""
    assert seen == [b"a", b"b", b"c", b"a"]
