"""Token ids to text as they come (incremental detokenisation)."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from syscalls.text.pieces import PieceTable


class IncrementalDecoder:
    """Turns tokens into text piece by piece; the pieces joined are the text of all tokens decoded at once.

    A character whose bytes are spread over several tokens comes out whole with the last of them.

    Args:
        pieces: the tokenizer's table (`TextModel.pieces`).
        skip_special_tokens: leave out tokens that mark structure.
        shown_tokens: ids of special tokens that are not left out.
        continues: the tokens go on from an earlier text: a space at their start is kept, which tokenizers
            with a "dummy prefix" would strip from the start of a text.
    """

    def __init__(
        self,
        pieces: PieceTable,
        *,
        skip_special_tokens: bool = True,
        continues: bool = False,
        shown_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._pieces = pieces
        self._skip_special_tokens = skip_special_tokens
        self._shown_tokens = shown_tokens
        self._is_start = not continues
        self._num_leading_spaces = 0 if continues else pieces.num_leading_spaces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_between = False  # characters, and behind what is special about a start

    def push(self, token_ids: Iterable[int]) -> str:
        """Decode the next tokens. Returns the text that is complete now."""
        return "".join(self.push_each(token_ids))

    def push_each(self, token_ids: Iterable[int]) -> list[str]:
        """Decode the next tokens. Returns, for each, the text that it completed: "" inside a character."""
        return [self.push_one(token_id) for token_id in token_ids]

    def flush(self) -> str:
        """End the text. Returns U+FFFD when it ends inside a character, else ""."""
        return self._strip(self._utf8.decode(b"", final=True))

    def push_one(self, token_id: int) -> str:
        """Decode the next token. Returns the text that it completed: "" inside a character."""
        if self._is_between and (known := self._pieces.texts.get(token_id)) is not None:
            return known
        is_special = self._skip_special_tokens and self._pieces.is_special(token_id)
        if is_special and token_id not in self._shown_tokens:
            return ""
        piece = self._pieces.first(token_id) if self._is_start else self._pieces[token_id]
        self._is_start = False
        text = self._utf8.decode(piece)
        if self._num_leading_spaces:
            text = self._strip(text)
        self._is_between = not self._num_leading_spaces and not self._utf8.getstate()[0]
        return text

    def _strip(self, text: str) -> str:
        while self._num_leading_spaces and text:
            if text[0] != " ":
                self._num_leading_spaces = 0
                break
            text = text[1:]
            self._num_leading_spaces -= 1
        return text
