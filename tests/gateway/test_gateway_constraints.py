"""Fields that say what the answer must look like: all their names become one grammar, or an error by name."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from drivers.builtin import base_path
from shell.gateway.constraints import ConstraintFields, compile_constraint, read_constraint
from shell.gateway.errors import ApiError
from shell.gateway.fields import convert
from syscalls.text.grammar import BadGrammar, choice_grammar, json_grammar, read_grammar, regex_grammar

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
GBNF = 'root ::= item ("," item)*  # some\nitem ::= [a-c]+ | "\\u0041"'


@cache
def tokenizer() -> LLTokenizer:
    """The built-in model's."""
    return LLTokenizer((base_path() / "tokenizer.json").read_text(encoding="utf-8"))


def accepts(grammar: str, text: str) -> bool:
    """True when a text is all that a grammar asks for."""
    matcher = LLMatcher(tokenizer(), grammar, log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    for token in tokenizer().tokenize_str(text):
        if matcher.is_stopped() or not matcher.consume_token(token):
            return False
    return bool(matcher.is_accepting())


def compile_fields(**fields: Any) -> str | None:
    """A body's grammar."""
    constraint = read_constraint(convert(fields, ConstraintFields), [])
    return None if constraint is None else compile_constraint(constraint)


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, '{"a": [1, "b"]}', "[1]"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, '{"n": 1}', '{"n": "1"}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            '{"n": 1}',
            "{}",
        ),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, '{"n": 1}', "{}"),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, '{"n": 1}', "{}"),
        ({"structured_outputs": {"json_object": True}}, "{}", "1"),
        ({"structured_outputs": {"regex": "a/b|c"}}, "a/b", "a"),
        ({"structured_outputs": {"choice": ["yes", 'n"o']}}, 'n"o', "no"),
        ({"structured_outputs": {"grammar": GBNF}}, "ab,A", "ab,"),
        ({"guided_json": '{"type": "integer"}'}, "12", "1.5"),
        ({"guided_regex": "^[0-9]{3}$"}, "123", "12"),
        ({"guided_choice": ["é", "b"]}, "é", "e"),
        ({"guided_grammar": "start: /x+/"}, "xx", "y"),
        ({"regex": "x*"}, "", "y"),
        ({"ebnf": GBNF}, "c", "d"),
        ({"json_schema": SCHEMA}, '{"n": -3}', "null"),
        ({"grammar": GBNF}, "A,A", "a,,a"),
    ],
)
def test_every_name_makes_its_grammar(fields: dict[str, Any], good: str, bad: str) -> None:
    """What each field means, by a text that fits and one that does not."""
    grammar = compile_fields(**fields)
    assert grammar is not None
    assert accepts(grammar, good)
    assert not accepts(grammar, bad)


def test_neutral_fields_are_free() -> None:
    """What clients send when they want nothing."""
    free = {"response_format": {"type": "text"}, "structured_outputs": {}, "grammar": ""}
    assert compile_fields(**free) is None
    assert compile_fields(structured_outputs={"json_object": False}) is None


@pytest.mark.parametrize(
    ("fields", "code", "param", "words"),
    [
        ({"regex": "a", "grammar": GBNF}, "invalid_value", "grammar", "'regex' and 'grammar'"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "invalid_value",
            "structured_outputs.choice",
            "both",
        ),
        ({"structured_outputs": {"structural_tag": "x"}}, "unsupported_parameter", None, "structural_tag"),
        ({"structured_outputs": {"regex": 5}}, "invalid_type", "structured_outputs.regex", "a string"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "missing_required_parameter",
            "response_format.json_schema.schema",
            "schema",
        ),
        ({"guided_json": "{"}, "invalid_json_schema", "guided_json", "JSON"),
        (
            {"guided_json": {"properties": {"a": {"not": {}}}}},
            "invalid_json_schema",
            "guided_json",
            "not",
        ),
        (
            {"json_schema": {"$ref": "#/definitions/x"}},
            "invalid_json_schema",
            "json_schema",
            "/definitions/x",
        ),
        ({"regex": "a("}, "invalid_grammar", "regex", "unclosed group"),
        ({"regex": "a" + "\\"}, "invalid_grammar", "regex", "lexer"),
        ({"guided_choice": []}, "invalid_grammar", "guided_choice", "nothing"),
        ({"grammar": "root ::= missing"}, "invalid_grammar", "grammar", "missing"),
        ({"grammar": 'root ::= "a\\'}, "invalid_grammar", "grammar", "grammar"),
        ({"grammar": "root ::= " + "(" * 5000}, "invalid_grammar", "grammar", "nested"),
        ({"ebnf": "start: nowhere"}, "invalid_grammar", "ebnf", "nowhere"),
        ({"regex": "a" * (1 << 20 | 1)}, "invalid_grammar", "regex", "longer"),
    ],
)
def test_what_cannot_be_followed_is_named(
    fields: dict[str, Any], code: str, param: str | None, words: str
) -> None:
    """400, with the field and the part at fault."""
    with pytest.raises(ApiError) as raised:
        compile_fields(**fields)
    error = raised.value.body()["error"]
    assert error["code"] == code
    assert param is None or error["param"] == param
    assert words in error["message"]


@settings(max_examples=60)
@given(
    st.lists(st.text(max_size=6).filter(lambda text: "\0" not in text), min_size=1, max_size=4),
    st.text(max_size=4),
)
def test_a_choice_is_one_of_its_texts(choices: list[str], other: str) -> None:
    """Any characters: those that mean something in a grammar, too."""
    try:
        grammar = choice_grammar([choice.encode("utf-8", "ignore").decode() for choice in choices])
    except BadGrammar:
        pytest.fail("a choice is always a grammar")
    for choice in choices:
        assert accepts(grammar, choice)
    assert accepts(grammar, other) == (other in choices)


@given(st.characters(exclude_categories=("Cs", "Cc")))
@settings(max_examples=60)
def test_escapes_of_gbnf_are_characters(character: str) -> None:
    """An escape is the character of that number, in a text and in a class."""
    escape = f"\\U{ord(character):08x}"
    for source in (f'root ::= "{escape}"', f"root ::= [{escape}]"):
        assert accepts(read_grammar(source), character)
        assert not accepts(read_grammar(source), "ab")


def test_a_regex_keeps_its_slashes_and_lines() -> None:
    """Both would end the expression in the grammar's own notation."""
    assert accepts(regex_grammar("a\\/b/\n[/]"), "a/b/\n/")
    assert accepts(json_grammar(True), "[1, null]")
