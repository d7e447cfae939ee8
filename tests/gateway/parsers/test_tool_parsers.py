"""Tool-call parsers: every format, every cut, and texts that only look like calls."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell.gateway.parsers.choose import TOOL_PARSERS
from shell.gateway.parsers.events import CallArguments, CallBegun, CallEnded, Content, Event, join_events
from shell.gateway.parsers.tool_parser import BLANKS, read_call

NAMES = frozenset({"f", "get_weather", "a.b-c"})
FORMATS = sorted(TOOL_PARSERS)

Call = tuple[str, dict[str, Any]]


def read(name: str, pieces: list[str], *, is_certain: bool = False) -> list[Event]:
    """Feed a parser piece by piece; neighbours of one kind are joined."""
    parser = TOOL_PARSERS[name](NAMES, is_certain=is_certain)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return join_events(events + parser.finish())


def cut(text: str, places: list[int]) -> list[str]:
    """Cut a text at some places, taken modulo its length."""
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:stop] for start, stop in itertools.pairwise(borders)]


def write_object(call: Call, key: str = "arguments") -> str:
    """A call as a JSON object."""
    name, arguments = call
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


# How each format writes a list of calls; the parsers' reference, for texts that are well formed.
WRITERS: dict[str, list[Callable[[list[Call]], str]]] = {
    "hermes": [
        lambda calls: "\n".join(f"<tool_call>\n{write_object(call)}\n</tool_call>" for call in calls),
        lambda calls: "".join(f"<tool_call>{write_object(call)}" for call in calls),
    ],
    "llama3": [
        lambda calls: "; ".join(write_object(call, "parameters") for call in calls),
        lambda calls: "<|python_tag|>" + ";".join(write_object(call, "parameters") for call in calls),
        lambda calls: "".join(f"<|python_tag|>{write_object(call)}\n" for call in calls),
    ],
    "mistral": [
        lambda calls: "[TOOL_CALLS] [" + ", ".join(map(write_object, calls)) + "]",
        lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(args)}" for name, args in calls),
        lambda calls: "".join(
            f"[TOOL_CALLS]{name}[CALL_ID]x1[ARGS] {json.dumps(args)}" for name, args in calls
        ),
        lambda calls: "".join(f"[TOOL_CALLS]{name}{json.dumps(args)}\n" for name, args in calls),
    ],
    "json": [
        lambda calls: "\n".join(map(write_object, calls)),
        lambda calls: "[" + ",\n".join(map(write_object, calls)) + "]",
        lambda calls: "```json\n[" + ", ".join(map(write_object, calls)) + "]\n```",
        lambda calls: "```\n" + "\n".join(map(write_object, calls)) + "\n```",
    ],
}
WRITERS["mistral-named"] = WRITERS["mistral"]
MARKED = {"hermes", "mistral", "mistral-named"}  # formats whose calls may follow other text

values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(alphabet='a"\\{}[]<>/日\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("xy<", max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)
calls = st.lists(
    st.tuples(st.sampled_from(sorted(NAMES)), st.dictionaries(st.text("kq", max_size=2), values, max_size=3)),
    min_size=1,
    max_size=3,
)
prose = st.text(alphabet="ab <[{é", max_size=12)
cuts = st.lists(st.integers(0, 400), max_size=12)


def told_calls(events: list[Event]) -> list[Call]:
    """The calls among events, whose order and completeness are checked; their arguments must parse."""
    found: list[Call] = []
    name, arguments = "", ""
    for event in events:
        match event:
            case CallBegun():
                assert not name, "a call in a call"
                name, arguments = event.name, ""
            case CallArguments():
                assert name
                arguments += event.text
            case CallEnded():
                found.append((name, json.loads(arguments)))
                name = ""
            case _:
                assert not name, "text in a call"
    assert not name, "a call without an end"
    return found


def told_content(events: list[Event]) -> str:
    """The content among events."""
    return "".join(event.text for event in events if isinstance(event, Content))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150)
@given(data=st.data())
def test_well_formed_calls_are_read(name: str, data: st.DataObject) -> None:
    """Whatever the calls and the cuts: these calls come out, the text before them, and no markup."""
    wanted = data.draw(calls)
    before = data.draw(prose) if name in MARKED else data.draw(st.text(BLANKS, max_size=3))
    text = before + data.draw(st.sampled_from(WRITERS[name]))(wanted) + data.draw(st.text(BLANKS, max_size=2))
    events = read(name, cut(text, data.draw(cuts)))
    assert told_calls(events) == wanted
    assert told_content(events) == before.rstrip(BLANKS)
    assert events == read(name, [text])


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100)
@given(wanted=calls, places=cuts, data=st.data())
def test_certain_calls_stream(name: str, wanted: list[Call], places: list[int], data: st.DataObject) -> None:
    """Calls that a grammar has made are told as they come; the sum is what the whole text gives."""
    text = data.draw(st.sampled_from(WRITERS[name]))(wanted)
    events = read(name, cut(text, places), is_certain=True)
    assert told_calls(events) == wanted
    assert not told_content(events).strip("`")


SOUP = [
    "<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[ARGS]", "[TOOL", "<|python_tag|>", "<|py",
    '{"name": "f", "arguments": {}}', '{"name": "g", "arguments": {}}', '{"name": 1}', '{"name"', '"a\\', '"',
    '{"name": "f", "parameters": {"a": "}"}}', '{"name": "f", "arguments": {"a": tru}}',
    '{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": "{\\"a\\": 1}"}', "```", "json",
    "{", "}", "[", "]", ",", ";", " ", "\n", "f", "word",
]  # fmt: skip
soup = st.lists(st.sampled_from(SOUP), max_size=14).map("".join)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=400)
@given(text=soup, places=cuts)
def test_any_text_gives_the_same_events_however_it_is_cut(name: str, text: str, places: list[int]) -> None:
    """Also of nonsense: cuts do not matter, arguments parse, a text without calls is content, unchanged."""
    events = read(name, [text])
    assert read(name, cut(text, places)) == events
    assert read(name, list(text)) == events
    found = told_calls(events)
    if not found:
        assert told_content(events) == text
    rest = iter(text)  # what is told as content stands in the text, in this order
    assert all(character in rest for character in told_content(events))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100)
@given(wanted=calls, places=cuts, end=st.integers(0, 300), data=st.data())
def test_certain_call_that_is_cut(
    name: str, wanted: list[Call], places: list[int], end: int, data: st.DataObject
) -> None:
    """A limit in the middle of a forced call leaves a prefix of the calls, and never markup as content."""
    text = data.draw(st.sampled_from(WRITERS[name]))(wanted)[:end]
    events = read(name, cut(text, places), is_certain=True)
    names = [event.name for event in events if isinstance(event, CallBegun)]
    assert names == [call[0] for call in wanted[: len(names)]]
    assert not any(name in told_content(events) for name in NAMES)
    assert len([event for event in events if isinstance(event, CallEnded)]) >= len(names) - 1


@attrs.frozen
class Case:
    """A text, and what a format makes of it."""

    format: str
    text: str
    calls: list[Call]
    content: str


OBJECT = '{"name": "f", "arguments": {"a": 1}}'
DEEP = '{"name": "f", "arguments": {"a": ' + "[" * 70 + "]" * 70 + "}}"


def plain(format: str, text: str) -> Case:
    """A text without a call."""
    return Case(format, text, [], text)


CASES = [
    Case("hermes", f"Let me look.\n<tool_call>\n{OBJECT}\n</tool_call>", [("f", {"a": 1})], "Let me look."),
    Case("hermes", '<tool_call>{"name": "new", "arguments": null}</tool_call>', [("new", {})], ""),
    Case("hermes", '<tool_call>{"name": "f"}</tool_call>done', [("f", {})], "done"),
    Case("hermes", '<tool_call>{oops <tool_call>{"name": "f"}</tool_call>', [("f", {})], "<tool_call>{oops"),
    Case(
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
        [("f", {"a": "</tool_call>"})],
        "",
    ),
    plain("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>'),
    plain("hermes", "a < b and <tool"),
    Case("llama3", '{"name": "f", "parameters": {"a": "x;y"}}', [("f", {"a": "x;y"})], ""),
    Case("llama3", '<|python_tag|>{"name": "unknown", "parameters": {}}', [("unknown", {})], ""),
    plain("llama3", '{"name": "unknown", "parameters": {}}'),
    plain("llama3", '<|python_tag|>brave_search.call(query="x")'),
    plain("llama3", 'See {"name": "f", "parameters": {}}'),
    Case("mistral", 'ok [TOOL_CALLS]f{"a": 1}', [("f", {"a": 1})], "ok"),
    Case("mistral", f'[TOOL_CALLS][{OBJECT}, {{"name": 3}}]', [("f", {"a": 1})], ' {"name": 3}]'),
    plain("mistral", "[TOOL_CALLS][]"),
    plain("mistral", "[TOOL_CALLS]just words"),
    Case("json", f"```json\n{OBJECT}\n```\nthere", [("f", {"a": 1})], "there"),
    plain("json", '{"answer": 42}'),
    plain("json", '[{"name": "Ann"}, {"name": "Bob"}]'),
    plain("json", "```python\nprint()\n```"),
    plain("json", DEEP),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}: {case.text[:40]}")
def test_cases(case: Case) -> None:
    """Texts that models have been seen to write, character by character."""
    events = read(case.format, list(case.text))
    assert told_calls(events) == case.calls
    assert told_content(events) == case.content


def test_spelling_of_arguments_is_kept() -> None:
    """Numbers and escapes reach the client as the model wrote them."""
    assert read_call('{"arguments": {"x": 1.0, "y": "\\u00e9"}, "name": "f"}') == (
        "f",
        '{"x": 1.0, "y": "\\u00e9"}',
    )


def test_arguments_stream_only_when_certain() -> None:
    """A free call is told when it parses; a certain one from its name on."""
    begun = '<tool_call>{"name": "f", "arguments": {"a": '
    assert TOOL_PARSERS["hermes"](NAMES).feed(begun) == []
    certain = TOOL_PARSERS["hermes"](NAMES, is_certain=True)
    assert certain.feed(begun) == [CallBegun("f"), CallArguments('{"a": ')]
    assert certain.feed("1}") == [CallArguments("1}"), CallEnded()]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=50)
@given(wanted=calls, is_certain=st.booleans())
def test_style_is_read_back(name: str, wanted: list[Call], is_certain: bool) -> None:
    """Calls written in a format's own style come out of its parser, and nothing else does."""
    written = TOOL_PARSERS[name].STYLE.write([(call[0], json.dumps(call[1])) for call in wanted])
    events = read(name, [written], is_certain=is_certain)
    assert told_calls(events) == wanted
    assert not told_content(events)
