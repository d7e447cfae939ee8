"""Filling in: which tokens mark a hole, by the tokenizer alone, and where they go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syscalls.text.fill_in import MARKS, FillIn, find_fill_in
from syscalls.text.tokenizer import TextModel
from tests.scripted_kernel import write_model_folder


def open_with(folder: Path, *marks: str) -> TextModel:
    """A model of bytes whose tokenizer knows these marks, from id 260 on."""
    return TextModel.open(write_model_folder(folder, more_special_tokens=marks))


@pytest.mark.parametrize("row", MARKS, ids=lambda row: row[0])
def test_each_family_is_known_by_its_tokens(tmp_path: Path, row: tuple[str, str, str | None]) -> None:
    """All of its marks; with one of them missing it is none, and a text that spells them is only text."""
    marks = [mark for mark in row if mark is not None]
    found = find_fill_in(open_with(tmp_path / "whole", *marks))
    ids = [260 + index for index in range(len(marks))]
    assert found == FillIn(ids[0], ids[1], ids[2] if row[2] else None)
    for index in range(len(marks)):
        text = open_with(tmp_path / str(index), *(mark for mark in marks if mark is not marks[index]))
        assert find_fill_in(text) is None
    assert find_fill_in(open_with(tmp_path / "none")) is None


def test_what_else_a_code_model_knows(tmp_path: Path) -> None:
    """Marks of projects and files, and what ends a piece: the names of one family."""
    marks = (
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|fim_pad|>",
        "<|repo_name|>",
        "<|file_sep|>",
    )
    assert find_fill_in(open_with(tmp_path, *marks)) == FillIn(260, 262, 261, 264, 265, (263, 264, 265))


def test_the_order_of_the_parts(tmp_path: Path) -> None:
    """Before, after, then the hole; where there is no mark for it, after and then before."""
    assert FillIn(10, 11, 12).join([1, 2], [3]) == [10, 1, 2, 11, 3, 12]
    assert FillIn(10, 11, 12).join([], []) == [10, 11, 12]
    assert FillIn(10, 11, None).join([1, 2], [3]) == [11, 3, 10, 1, 2]
    assert FillIn(10, 11, 12, start=(0,)).join([1], [2]) == [0, 10, 1, 11, 2, 12]


def test_a_begin_token_stays_at_the_beginning(tmp_path: Path) -> None:
    """Where the tokenizer puts one before every text, it comes before the marks too."""
    marks = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<s>")
    folder = write_model_folder(tmp_path, more_special_tokens=marks)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}))
    assert find_fill_in(TextModel.open(folder)) == FillIn(260, 262, 261)  # it is known, and not put anywhere
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [263], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert find_fill_in(TextModel.open(folder)) == FillIn(260, 262, 261, start=(263,))
