"""Tokens are found by the text in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syscalls.text.tokenizer import TextModel

FOLDER = Path(__file__).parents[3] / "drivers" / "builtin" / "base"


@pytest.fixture(scope="module")
def text() -> TextModel:
    """The builtin model's."""
    return TextModel.open(FOLDER)


@settings(max_examples=60)
@given(
    needle=st.one_of(st.sampled_from(["\n", ":", "th", " the", "<|", "e"]), st.text(min_size=1, max_size=2))
)
def test_what_is_found_is_what_contains_it(text: TextModel, needle: str) -> None:
    """Every token whose bytes contain the text, and no other; a border between two tokens is no match."""
    expected = [token for token in range(text.vocab_size) if needle.encode() in text.token_bytes(token)]
    assert list(text.piece_search.find(needle)) == expected


def test_the_empty_text_is_refused(text: TextModel) -> None:
    """It would be in every token."""
    with pytest.raises(ValueError, match="empty"):
        text.piece_search.find("")
