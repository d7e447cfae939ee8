"""What bytes a token stands for, by the tokenizer's own decoder rules.

A tokenizer file describes its decoder as a chain of steps over the list of tokens. The chains that language
models use work token by token, and may strip spaces from the start of the whole; so each token has fixed
bytes, and text is the concatenation of those bytes decoded as UTF-8. That makes decoding incremental and
exact: the tokenizers library's own `decode` of a list gives the same text whenever the bytes are valid UTF-8,
but for WordPiece's clean-up of spaces before punctuation, which is left out.
Where they are not, it writes one U+FFFD for each byte of the run (byte fallback), even for bytes that began a
whole character; here it is one for each maximal broken part, as the Unicode standard recommends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Step = Callable[[str | bytes], str | bytes]


class UnsupportedDecoder(ValueError):
    """The tokenizer's decoder has a step whose output cannot be told token by token."""


class PieceTable:
    """Bytes of every token id, worked out on first use and kept."""

    def __init__(self, tokenizer: Tokenizer, decoder: dict[str, Any] | None) -> None:
        """Read the decoder chain: the `decoder` object of tokenizer.json. Raises UnsupportedDecoder."""
        self.num_leading_spaces = 0  # stripped from the start of a text
        self._tokenizer = tokenizer
        self._is_byte_level = False
        self._dropped_at_start = ""  # removed from a text's first token
        self._added = tokenizer.get_added_tokens_decoder()
        self._pieces: dict[int, bytes] = {}
        self.texts: dict[int, str] = {}  # of those that are whole characters and mark no structure
        self._steps: list[Step] = []
        is_fused = False
        for step in _flatten(decoder):
            is_fused = self._add_step(step, is_fused)

    def __getitem__(self, token_id: int) -> bytes:
        """Bytes of one token inside a text; empty for an id that has no token."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._spell(token_id, dropped="")
            if not self.is_special(token_id):
                with suppress(UnicodeDecodeError):
                    self.texts[token_id] = piece.decode()
        return piece

    def first(self, token_id: int) -> bytes:
        """Bytes of one token at the start of a text."""
        return self._spell(token_id, self._dropped_at_start) if self._dropped_at_start else self[token_id]

    def is_special(self, token_id: int) -> bool:
        """True for a token that marks structure (end of text, turn borders) rather than text."""
        added = self._added.get(token_id)
        return added is not None and bool(added.special)

    def _spell(self, token_id: int, dropped: str) -> bytes:
        content: str | bytes | None = self._tokenizer.id_to_token(token_id)
        if content is None:
            return b""
        if self._is_byte_level and token_id in self._added:
            return content.encode() if isinstance(content, str) else content  # not in the byte alphabet
        if dropped and isinstance(content, str):
            content = content.replace(dropped, "")
        for step in self._steps:
            content = step(content)
        return content.encode() if isinstance(content, str) else content

    def _add_step(self, step: dict[str, Any], is_fused: bool) -> bool:
        """Take one step of the chain; returns whether tokens are fused after it."""
        match step:
            case {"type": "Fuse"}:
                return True
            case {"type": "Strip", "content": " ", "start": start, "stop": 0} if is_fused:
                self.num_leading_spaces += start
            case {"type": "ByteLevel"} if not is_fused:
                self._is_byte_level = True
                self._steps.append(_spell_byte_level)
            case {"type": "ByteFallback"} if not is_fused:
                self._steps.append(_spell_byte_token)
            case {"type": "Replace", "pattern": {"String": old}, "content": new} if not is_fused:
                self._steps.append(_replacing(old, new))
            case {"type": "Metaspace", "replacement": mark} if not is_fused:
                if step.get("prepend_scheme", "always") != "never":
                    self._dropped_at_start = mark
                self._steps.append(_replacing(mark, " "))
            case {"type": "WordPiece", "prefix": mark} if not is_fused:  # its clean-up looks at neighbours
                self.num_leading_spaces += 1
                self._steps.append(_joining_words(mark))
            case {"type": "Join"} if not is_fused:
                self.num_leading_spaces += 1
                self._steps.append(_prepend_space)
            case _:
                where = " after Fuse" if is_fused else ""
                raise UnsupportedDecoder(f"decoder step {step.get('type')}{where} is not supported: {step}")
        return is_fused


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return [{"type": "Join"}]  # without a decoder, tokens are words
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder["decoders"] for step in _flatten(inner)]
    return [decoder]


def _replacing(old: str, new: str) -> Step:
    return lambda piece: piece.replace(old, new) if isinstance(piece, str) else piece


def _prepend_space(piece: str | bytes) -> str | bytes:
    return f" {piece}" if isinstance(piece, str) else b" " + piece


def _joining_words(mark: str) -> Step:
    def join(piece: str | bytes) -> str | bytes:
        text = piece if isinstance(piece, str) else piece.decode(errors="replace")
        return text.removeprefix(mark) if text.startswith(mark) else f" {text}"

    return join


def _spell_byte_token(piece: str | bytes) -> str | bytes:
    if isinstance(piece, str) and (found := _BYTE_TOKEN.fullmatch(piece)):
        return bytes.fromhex(found[1])
    return piece


def _make_byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of the byte-level alphabet.

    Printable Latin-1 characters stand for themselves, the other bytes for 256, 257, … in order.
    Source: GPT-2, Radford et al. 2019.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _make_byte_alphabet()


def _spell_byte_level(piece: str | bytes) -> str | bytes:
    if isinstance(piece, str) and all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece)
    return piece
