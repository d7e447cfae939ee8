"""The books: found or named as missing, split without overlap."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.training.corpus import BOOKS, CorpusMissing, load_books, sentences, unwrap


def test_missing_corpus_is_named(tmp_path: Path) -> None:
    """What if the books are not there? The message says where they were looked for, and what to set."""
    with pytest.raises(CorpusMissing, match="LLMOS_CORPORA"):
        load_books(tmp_path)


def test_split(tmp_path: Path) -> None:
    """The held-out part is the end of the book, cut after a sentence, and nothing is in both."""
    for name, _, _ in BOOKS:
        (tmp_path / name).write_text("".join(f"This is sentence number {i}.\n\n" for i in range(1000)))
    for book in load_books(tmp_path):
        assert book.held_out.endswith("999.")
        assert book.train.rstrip().endswith(".")
        assert not set(sentences(book.train)) & set(sentences(book.held_out))
        assert 0.03 < len(book.held_out) / len(book.train) < 0.05


def test_unwrap() -> None:
    """Lines join, paragraphs stay."""
    assert unwrap("a\nb\n\n\nc\n") == "a b\n\nc"
