"""What a text model reads from a folder, in the places where different writers put it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syscalls.text.tokenizer import TextModel, TextModelError
from tests.syscalls.text.data import STORIES, make_byte_fallback, make_byte_level, require, save


def test_special_tokens_are_added_or_not(tmp_path: Path) -> None:
    """The template of tokenizer.json puts <s> first, unless told not to."""
    model = TextModel.open(save(make_byte_fallback(), tmp_path / "model"))
    bare = model.encode("the", add_special_tokens=False)
    assert model.encode("the") == [1, *bare]
    assert model.decode([1, *bare, 2], skip_special_tokens=False) == "<s> the</s>"
    assert model.decode([1, *bare, 2]) == "the"


def test_end_tokens_come_from_the_model_and_the_tokenizer(tmp_path: Path) -> None:
    """generation_config.json wins over config.json; the tokenizer's own end token is always there."""
    folder = save(make_byte_fallback(), tmp_path / "model")
    assert TextModel.open(folder).eos_token_ids == (2,)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert TextModel.open(folder).eos_token_ids == (0, 2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
    assert TextModel.open(folder).eos_token_ids == (3, 2)


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    """Older writers save a special token as an object with its content."""
    folder = save(make_byte_fallback(), tmp_path / "model", bos_token={"content": "<s>", "lstrip": False})
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "<unk>", "eos_token": "<|end|>"})
    )
    model = TextModel.open(folder)
    assert model.special_tokens["bos_token"] == "<s>"
    assert model.special_tokens["pad_token"] == "<unk>"
    assert model.special_tokens["eos_token"] == "</s>"


def test_template_places(tmp_path: Path) -> None:
    """chat_template.jinja wins over tokenizer_config.json, which may hold one template or a named list."""
    folder = save(make_byte_fallback(), tmp_path / "model")
    assert not TextModel.open(folder).chat_template.is_available
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert TextModel.open(folder).chat_template.source() == "processor"
    save_config(folder, "inline")
    assert TextModel.open(folder).chat_template.source() == "inline"
    save_config(folder, [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    model = TextModel.open(folder)
    assert (model.chat_template.source(), model.chat_template.source(with_tools=True)) == ("a", "b")
    (folder / "chat_template.jinja").write_text("file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    model = TextModel.open(folder)
    assert (model.chat_template.source(), model.chat_template.source(with_tools=True)) == ("file", "tools")


def save_config(folder: Path, template: object) -> None:
    """Write tokenizer_config.json with a chat template."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def test_saved_truncation_does_not_cut_prompts(tmp_path: Path) -> None:
    """Padding and truncation that a training run left in the file are turned off."""
    tokenizer = make_byte_fallback()
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=16)
    model = TextModel.open(save(tokenizer, tmp_path / "model"))
    assert len(model.encode("abc" * 50)) > 100
    assert len(model.encode("a")) < 16


def test_broken_folders_are_named(tmp_path: Path) -> None:
    """A missing or broken file is told by its path."""
    with pytest.raises(TextModelError, match=r"tokenizer\.json: No such file"):
        TextModel.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TextModelError, match=r"tokenizer\.json"):
        TextModel.open(tmp_path)
    folder = save(make_byte_fallback(), tmp_path / "model")
    (folder / "tokenizer_config.json").write_text('["not an object"]')
    with pytest.raises(TextModelError, match=r"tokenizer_config\.json"):
        TextModel.open(folder)


def test_token_bytes_cover_a_split_character(tmp_path: Path) -> None:
    """The bytes of tokens inside a character join to the character."""
    for make in (make_byte_fallback, make_byte_level):
        model = TextModel.open(save(make(), tmp_path / make.__name__))
        ids = model.encode("\U0001f680", add_special_tokens=False)
        assert b"".join(map(model.token_bytes, ids)).strip() == "\U0001f680".encode()
        assert len(ids) > 1


def test_agrees_with_golden_prompts() -> None:
    """Prompts of the reference model have the ids that its author's own tokenizer gave."""
    model = TextModel.open(require(STORIES))
    golden = json.loads((STORIES / "golden.json").read_text())
    cases = [case for case in golden["cases"] if case["prompt"]]
    assert len(cases) > 3
    for case in cases:
        assert model.encode(case["prompt"]) == case["prompt_ids"]
