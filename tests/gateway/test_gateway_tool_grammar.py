"""Grammars of calls: whatever a grammar allows, the parser reads as calls that obey their schemas."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from shell.gateway.parsers.choose import TOOL_PARSERS
from shell.gateway.parsers.events import (
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    Reasoning,
    join_events,
)
from shell.gateway.reader import Reading
from shell.gateway.tool_grammar import CallGrammar, wants_grammar
from shell.gateway.tools import Function, ToolChoice, ToolUse
from syscalls.text.grammar import json_grammar
from syscalls.text.tokenizer import TextModel
from tests.scripted_kernel import END, write_model_folder

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>")
MARK_IDS = {mark: 260 + index for index, mark in enumerate(MARKS)}
UNIT = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
COUNT = {
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
FUNCTIONS = (
    Function(name="unit", parameters=UNIT, strict=True),
    Function(name="count", parameters=COUNT, strict=True),
    Function(name="now", strict=True),
)
CHECKS = {
    "unit": lambda arguments: arguments in ({"unit": "C"}, {"unit": "F"}),
    "count": lambda arguments: set(arguments) == {"n"} and 0 <= arguments["n"] <= 99,
    "now": lambda arguments: arguments == {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens are bytes, and one where marks are tokens of their own."""
    folder = tmp_path_factory.mktemp("models")
    write_model_folder(folder / "bytes")
    write_model_folder(folder / "marks", more_special_tokens=MARKS)
    return folder


@cache
def open_model(folder: Path, kind: str) -> tuple[TextModel, LLTokenizer]:
    """A model's text side and what grammars need of it."""
    text = TextModel.open(folder / kind)
    return text, LLTokenizer(text.tokenizer.to_str(), eos_token=END)


def walk(tokenizer: LLTokenizer, grammar: str, seed: int, max_tokens: int) -> tuple[list[int], bool]:
    """Sample tokens that a grammar allows; returns them and whether they are complete."""
    chance = random.Random(seed)
    matcher = LLMatcher(tokenizer, grammar)
    assert not matcher.get_error(), matcher.get_error()
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        assert not matcher.get_error(), matcher.get_error()
        allowed = [token for token in range(tokenizer.vocab_size) if mask >> token & 1]
        marks = [token for token in allowed if token > 259 or token == ord("{")]
        printable = [token for token in allowed if 31 < token < 127]
        if matcher.is_accepting() and (chance.random() < 0.2 or allowed == [END]):
            return tokens, True
        likely = (
            marks
            if marks and chance.random() < 0.2
            else printable or marks or [t for t in allowed if t != END]
        )
        tokens.append(chance.choice(likely))
        assert matcher.consume_token(tokens[-1])
    return tokens, matcher.is_accepting()


def read(text: TextModel, tokens: list[int], reading: Reading) -> list[Event]:
    """Read tokens as the gateway would."""
    decoder = text.decoder(continues=True, shown_tokens=reading.markup)
    reader = reading.open((), False)
    parts: list[Event] = []
    for token in tokens:
        if piece := decoder.push([token]):
            parts += reader.push(piece)
        if reader.is_complete:
            return join_events(parts)
    return join_events(parts + reader.flush())


@pytest.mark.parametrize("kind", ["bytes", "marks"])
@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
@settings(max_examples=60)
@given(
    choice=st.sampled_from(ToolChoice), is_parallel=st.booleans(),
    allowed=st.sampled_from([None, frozenset(["now"]), frozenset(["unit", "count"])]),
    thinks=st.sampled_from([None, False, True]),
    has_schema=st.booleans(), max_tokens=st.integers(1, 250), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_what_a_grammar_allows_is_read_as_calls(
    folder: Path, kind: str, name: str,
    choice: ToolChoice, is_parallel: bool, allowed: frozenset[str] | None, thinks: bool | None,
    has_schema: bool, max_tokens: int, seed: int,
) -> None:  # fmt: skip
    """Random walks: forced answers are calls and nothing else; schemas hold; a cut leaves no markup."""
    text, tokenizer = open_model(folder, kind)
    parser = TOOL_PARSERS[name]
    named = FUNCTIONS[1] if choice is ToolChoice.NAMED else None
    tool_use = ToolUse(
        functions=FUNCTIONS, choice=choice, named=named, allowed=allowed, is_parallel=is_parallel
    )
    assert wants_grammar(tool_use)
    marks = None if thinks is None else ("<think>", "</think>")
    grammar = CallGrammar(
        tool_use=tool_use,
        parser=parser,
        mark_ids=MARK_IDS if kind == "marks" else {},
        reasoning_marks=marks,
        is_thinking=bool(thinks),
        answer=json_grammar({"enum": [1, 2]}) if has_schema else None,
    ).write()
    tokens, is_complete = walk(tokenizer, grammar, seed, max_tokens)
    reading = Reading(
        reasoning_marks=marks,
        is_thinking=bool(thinks),
        tool_parser=parser,
        function_names=tool_use.names,
        is_certain=True,
        is_forced=tool_use.is_forced,
        has_one_call=tool_use.has_one_call,
    )
    parts = read(text, tokens, reading)
    names = [part.name for part in parts if isinstance(part, CallBegun)]
    arguments = [part.text for part in parts if isinstance(part, CallArguments)]
    num_ended = sum(isinstance(part, CallEnded) for part in parts)
    content = "".join(part.text for part in parts if isinstance(part, Content))
    for function, written in list(zip(names, arguments, strict=False))[:num_ended]:
        assert CHECKS[function](json.loads(written)), (function, written)
    if tool_use.is_forced:
        assert not content
    if has_schema and is_complete and not names:
        assert content in ("1", "2")
    assert named is not None or allowed is None or set(names) <= allowed
    if tool_use.has_one_call:
        assert len(names) <= 1
    if is_complete:
        assert num_ended == len(names)
        assert bool(names) or not tool_use.is_forced
        assert named is None or set(names) == {named.name}
    if thinks is None:
        assert not any(isinstance(part, Reasoning) for part in parts)
