"""Prompts to tokens, by a model's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from shell.llmsh.errors import CommandError
from syscalls.system import Model
from syscalls.text.pieces import UnsupportedDecoder
from syscalls.text.template import TemplateError
from syscalls.text.tokenizer import TextModel, TextModelError

ANSWER_MARK = "ANSWER-GOES-HERE"  # stands for an answer whose tokens the process holds already
UNSAFE = {code: f"^{chr(code ^ 64)}" for code in (*range(32), 127) if chr(code) not in "\n\t"} | {
    code: "\N{REPLACEMENT CHARACTER}" for code in range(128, 160)
}

Turn = tuple[str, str]  # role and text


def make_safe(text: str) -> str:
    """Replace control characters, so that a model's output cannot drive the terminal."""
    return text.translate(UNSAFE)


@attrs.define(eq=False)
class TextModels:
    """The text sides of the models in use, each read once."""

    _opened: dict[str, TextModel] = attrs.field(factory=dict)

    async def open(self, model: Model) -> TextModel:
        """Return a model's text side. Raises CommandError when its folder cannot be read."""
        if model.path not in self._opened:
            try:
                self._opened[model.path] = await trio.to_thread.run_sync(TextModel.open, model.path)
            except (TextModelError, UnsupportedDecoder) as error:
                raise CommandError(f"model {model.name}: {error}") from error
        return self._opened[model.path]


async def encode_prompt(text: TextModel, prompt: str, *, use_template: bool | None) -> list[int]:
    """Encode a prompt: as the user's turn of a conversation, or as it stands.

    Args:
        text: the model's text side.
        prompt: any text.
        use_template: None: when the model has one.

    Raises:
        CommandError: the template is wanted and absent, or fails.
    """
    if use_template is None:
        use_template = text.chat_template.is_available
    if use_template:
        return await encode_conversation(text, [("user", prompt)])
    return await trio.to_thread.run_sync(text.encode, prompt)


async def encode_conversation(text: TextModel, turns: Sequence[Turn]) -> list[int]:
    """Encode a conversation and the header of the next answer. Raises CommandError."""
    rendered = _render(text, turns)
    return await trio.to_thread.run_sync(text.encode, rendered, False)


async def encode_next_turn(text: TextModel, line: str, stop_token: int | None) -> list[int]:
    """Encode what follows an answer: the mark that closes it, the user's next turn, the next answer's header.

    Args:
        text: the model's text side.
        line: the user's turn.
        stop_token: the end token that the process sampled: its mark is there already.

    Raises:
        CommandError: the template fails.
    """
    rendered = _render(text, [("user", "x"), ("assistant", ANSWER_MARK), ("user", line)])
    start = rendered.find(ANSWER_MARK)
    if start < 0:
        raise CommandError("the model's chat template leaves out earlier answers")
    following = rendered[start + len(ANSWER_MARK) :]
    if stop_token is not None:
        following = following.removeprefix(text.tokenizer.id_to_token(stop_token) or "")
    return await trio.to_thread.run_sync(text.encode, following, False)


def _render(text: TextModel, turns: Sequence[Turn]) -> str:
    try:
        return text.chat_template.render([{"role": role, "content": content} for role, content in turns])
    except TemplateError as error:
        raise CommandError(f"{error}; 'run --raw' takes the prompt as it stands") from error
