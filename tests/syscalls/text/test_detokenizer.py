"""Incremental decoding equals decoding at once, and both equal the tokenizers library on valid text."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from syscalls.text.pieces import PieceTable, UnsupportedDecoder
from syscalls.text.tokenizer import TextModel
from tests.syscalls.text.data import BUILTIN, MAKERS, STORIES, make_byte_fallback, make_words, require, save

KINDS = [*MAKERS, "stories260k", "builtin"]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(
    " a\u00e9\u65e5\U0001f642", max_size=12
)


@cache
def open_model(kind: str) -> TextModel:
    """Open one tokenizer of each kind."""
    if kind == "stories260k":
        return TextModel.open(require(STORIES))
    if kind == "builtin":
        return TextModel.open(require(BUILTIN))
    with tempfile.TemporaryDirectory() as folder:
        return TextModel.open(save(MAKERS[kind](), Path(folder) / "model"))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_join_to_the_whole(kind: str, data: st.DataObject) -> None:
    """For any ids and any cut: joined deltas = decode at once, and no delta holds part of a character."""
    model = open_model(kind)
    ids = data.draw(st.lists(st.integers(0, model.vocab_size - 1) | st.integers(3, 259), max_size=30))
    skip, continues = data.draw(st.booleans()), data.draw(st.booleans())
    decoder = model.decoder(skip, continues)
    deltas: list[str] = []
    start = 0
    while start < len(ids):
        size = data.draw(st.integers(1, 5))
        deltas += decoder.push_each(ids[start : start + size])
        start += size
    assert len(deltas) == len(ids)
    whole = model.decode(ids, skip, continues)
    assert "".join(deltas) + decoder.flush() == whole
    kept = [token_id for token_id in ids if not (skip and model.pieces.is_special(token_id))]
    raw = b"".join(model.token_bytes(token_id) for token_id in kept).decode("utf-8", "replace")
    assert whole == raw if continues else raw.endswith(whole)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, skip=st.booleans())
def test_decode_equals_the_library(kind: str, text: str, skip: bool) -> None:
    """For ids that spell a real text, the result is the tokenizers library's own."""
    model = open_model(kind)
    ids = model.encode(text)
    assert ids == model.tokenizer.encode(text).ids
    assert model.decode(ids, skip) == model.tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["byte-fallback", "byte-level", "stories260k"])
@given(text=texts)
def test_round_trip(kind: str, text: str) -> None:
    """Byte-complete tokenizers give any text back."""
    model = open_model(kind)
    assert model.decode(model.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("kind", ["byte-fallback", "byte-level"])
def test_text_that_ends_inside_a_character(kind: str) -> None:
    """One U+FFFD stands for the unfinished character, in the flush and not before."""
    model = open_model(kind)
    ids = model.encode("a \U0001f680", add_special_tokens=False)
    while model.tokenizer.decode(ids).endswith("\U0001f680"):
        ids.pop()
    decoder = model.decoder()
    assert decoder.push(ids) == "a "
    assert decoder.flush() == "\ufffd"


def test_continuation_keeps_its_leading_space() -> None:
    """A completion's first word keeps the space that belongs between prompt and completion."""
    model = open_model("byte-fallback")
    ids = model.encode("the", add_special_tokens=False)
    assert model.decode(ids) == "the"
    assert model.decode(ids, continues=True) == " the"


def test_id_without_a_token_is_empty() -> None:
    """A model's output may be wider than its vocabulary; such ids have no text."""
    model = open_model("byte-level")
    assert model.decode([model.vocab_size + 5]) == ""


def test_unknown_decoder_is_refused_by_name() -> None:
    """A decoder that needs its neighbours is refused when the model is opened."""
    with pytest.raises(UnsupportedDecoder, match="CTC"):
        PieceTable(make_words(), {"type": "CTC", "pad_token": "<pad>"})
    chain = {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}
    with pytest.raises(UnsupportedDecoder, match="ByteFallback after Fuse"):
        PieceTable(make_byte_fallback(), chain)


def test_an_encoder_s_words_are_joined() -> None:
    """WordPiece: as the library does it without its clean-up."""
    tokenizer = Tokenizer(
        models.WordPiece({"un": 0, "##believ": 1, "##able": 2, "!": 3, "[X]": 4}, unk_token="[X]")
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    pieces = PieceTable(tokenizer, {"type": "WordPiece", "prefix": "##", "cleanup": True})
    ids = [0, 1, 2, 3, 0, 2, 1]
    text = b"".join(pieces[token] for token in ids).decode()
    assert text[pieces.num_leading_spaces :] == tokenizer.decode(ids) == "unbelievable ! unablebeliev"


def test_decoders_of_the_library_spell_their_names_as_we_do() -> None:
    """The step names that the table matches are the ones that the library writes."""
    tokenizer: Tokenizer = make_byte_fallback()
    for decoder in (decoders.ByteLevel(), decoders.Metaspace(), decoders.Fuse(), decoders.ByteFallback()):
        tokenizer.decoder = decoder
        assert f'"decoder":{{"type":"{type(decoder).__name__}"' in tokenizer.to_str()
