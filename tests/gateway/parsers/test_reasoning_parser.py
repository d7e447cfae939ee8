"""The reasoning parser against a reading of the whole text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell.gateway.parsers.choose import REASONING_MARKS, choose_reasoning_marks
from shell.gateway.parsers.events import Content, Reasoning, join_events
from shell.gateway.parsers.reasoning import LINE_ENDS, ReasoningParser


def read(pieces: list[str], is_inside: bool) -> tuple[str, str, bool]:
    """Return thought, answer, and whether there was a thought."""
    parser = ReasoningParser("<think>", "</think>", is_inside=is_inside)
    events = join_events([event for piece in pieces for event in parser.feed(piece)] + parser.finish())
    assert [type(event) for event in events] in ([], [Reasoning], [Content], [Reasoning, Content])
    assert not parser.num_held
    thought = "".join(event.text for event in events if isinstance(event, Reasoning))
    answer = "".join(event.text for event in events if isinstance(event, Content))
    return thought, answer, parser.has_reasoned


def split_whole(text: str, is_inside: bool) -> tuple[str, str, bool]:
    """The same, of a text that is all there."""
    if not is_inside:
        if not text.lstrip().startswith("<think>"):
            return "", text, False
        text = text.lstrip().removeprefix("<think>")
    thought, close, answer = text.partition("</think>")
    if close:
        return thought.strip(LINE_ENDS), answer.lstrip(LINE_ENDS), True
    return thought.lstrip(LINE_ENDS), "", True


soup = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think>", "\n", " ", "because", "so"]), max_size=10
).map("".join)


@settings(max_examples=500)
@given(text=soup, is_inside=st.booleans(), places=st.lists(st.integers(0, 90), max_size=8))
def test_any_cut_gives_what_the_whole_gives(text: str, is_inside: bool, places: list[int]) -> None:
    """Thought and answer are those of the whole text, however it comes."""
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    pieces = [text[start:stop] for start, stop in itertools.pairwise(borders)]
    assert read(pieces, is_inside) == split_whole(text, is_inside)
    assert read(list(text), is_inside) == split_whole(text, is_inside)


@pytest.mark.parametrize("name", REASONING_MARKS)
def test_marks_are_found_in_the_template(name: str) -> None:
    """The model's own template tells how it thinks; the operator may say otherwise."""
    marks = REASONING_MARKS[name]
    assert choose_reasoning_marks("auto", f"{{% if x %}}{marks[1]}{{% endif %}}") == marks
    assert choose_reasoning_marks("none", marks[1]) is None
    assert choose_reasoning_marks(name, "") == marks
    assert choose_reasoning_marks("auto", "plain") is None
