"""The shipped tokenizer: every text comes back, also piece by piece; the chat template is exact."""

from __future__ import annotations

import json

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from drivers.builtin import base_path, draft_path
from drivers.training.tokenizer import SPECIALS, train_tokenizer

TEXTS = [
    "Hello, world!",
    "  two spaces, a tab\t, line\n\n breaks \r\n and ▁ itself",
    "吾輩は猫である。名前はまだ無い。",
    "🎉🤖 👩‍👩‍👧 naïve café ẞ \u0000 \u200d \U0010ffff",
    "x = 3.14e-7; // <0x41> </s",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(base_path() / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    """What if the text has characters the vocabulary lacks? They travel as bytes."""
    ids = tokenizer.encode(text).ids
    assert ids[0] == tokenizer.token_to_id("<s>")
    assert tokenizer.decode(ids) == text


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(text: str) -> None:
    """All of Unicode, except text that spells a special token."""
    if not any(s in text for s in SPECIALS):
        assert _TOKENIZER.decode(_TOKENIZER.encode(text, add_special_tokens=False).ids) == text


_TOKENIZER = Tokenizer.from_file(str(base_path() / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_stream_decodes_piece_by_piece(tokenizer: Tokenizer, text: str) -> None:
    """What if a character's bytes arrive one by one? Nothing is shown until it is whole."""
    stream = DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(tokenizer, i) or "" for i in tokenizer.encode(text).ids]
    assert "".join(pieces) == text


def test_vocabulary_layout(tokenizer: Tokenizer) -> None:
    """Specials first, then the 256 bytes, in order."""
    assert [tokenizer.id_to_token(i) for i in range(len(SPECIALS))] == list(SPECIALS)
    assert [tokenizer.token_to_id(f"<0x{b:02X}>") for b in range(256)] == list(range(7, 263))
    assert tokenizer.encode("123", add_special_tokens=False).tokens == ["1", "2", "3"]


def test_both_models_share_the_tokenizer() -> None:
    """A draft that counted tokens differently could not draft."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (base_path() / name).read_bytes() == (draft_path() / name).read_bytes()


def test_chat_template() -> None:
    """The template writes the training format; parts and unknown roles are tolerated."""
    config = json.loads((base_path() / "tokenizer_config.json").read_text())
    template = jinja2.Environment().from_string(config["chat_template"])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi!"}]},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "4"},
    ]
    assert template.render(messages=messages, bos_token="<s>", add_generation_prompt=True) == (
        "<s><|system|>Be brief.<|end|><|user|>Hi!<|end|><|assistant|><|end|><|user|>4<|end|><|assistant|>"
    )


def test_training_is_deterministic() -> None:
    """The same texts give the same tokenizer."""
    texts = ["the cat sat on the mat", "a bat in a hat"] * 5
    assert train_tokenizer(texts, 290).to_str() == train_tokenizer(texts, 290).to_str()
