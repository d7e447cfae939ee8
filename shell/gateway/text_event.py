"""A stream's ordinary event, which only adds text, from pieces of JSON that are made once for each choice.

Of an event's 300 bytes a token changes ten. To build the object and encode it takes several times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

Json = dict[str, Any]

_encoder = msgspec.json.Encoder()
_TEXT, _TOKENS, _TIMES = "\x00text", "\x00tokens", "\x00times"  # no name of a model has a NUL


@attrs.frozen
class TextEvent:
    """The pieces between what changes. Which of tokens and times are told is settled when it is made."""

    before_text: bytes
    before_tokens: bytes  # empty: no tokens
    before_times: bytes  # empty: no times
    end: bytes

    @classmethod
    def make(cls, chunk: Json, row: Json, text_in: Json, name: str) -> TextEvent:
        """Cut up a chunk.

        Args:
            chunk: the object of an event, all keys in their order.
            row: the choice in it; what it has under `token_ids` and `token_times` is replaced.
            text_in: the object in it that has the text under `name`.
        """
        text_in[name] = _TEXT
        has_tokens, has_times = "token_ids" in row, "token_times" in row
        if has_tokens:
            row["token_ids"] = _TOKENS
        if has_times:
            row["token_times"] = _TIMES
        rest = b"data: " + _encoder.encode(chunk) + b"\n\n"
        before_text, rest = rest.split(_encoder.encode(_TEXT))
        before_tokens, rest = rest.split(_encoder.encode(_TOKENS)) if has_tokens else (b"", rest)
        before_times, rest = rest.split(_encoder.encode(_TIMES)) if has_times else (b"", rest)
        return cls(before_text, before_tokens, before_times, rest)

    def write(self, text: str, tokens: Sequence[int], times: Sequence[float]) -> bytes:
        """Return the framed event."""
        encode = _encoder.encode
        if not self.before_tokens and not self.before_times:
            return b"%b%b%b" % (self.before_text, encode(text), self.end)
        return b"%b%b%b%b%b%b%b" % (
            self.before_text, encode(text),
            self.before_tokens, encode(tokens) if self.before_tokens else b"",
            self.before_times, encode(times) if self.before_times else b"",
            self.end,
        )  # fmt: skip
