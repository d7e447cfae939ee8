"""A model's text side, read from its folder: tokenizer, special tokens, chat template."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from syscalls.text.detokenizer import IncrementalDecoder
from syscalls.text.piece_search import PieceSearch
from syscalls.text.pieces import PieceTable
from syscalls.text.template import ChatTemplate

# One prompt is one thread's work; the library's pool would spin on cores that the device needs, and it warns
# when a process forks after using it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TextModelError(ValueError):
    """A model folder's text files are missing or broken; the message names the file."""


class _TokenizerFile(msgspec.Struct):
    decoder: dict[str, Any] | None = None  # the other fields are the tokenizers library's business


class TextModel:
    """Everything between text and token ids for one model. Read-only once open: threads may share it.

    Attributes:
        tokenizer: the tokenizers library's object.
        pieces: bytes of every token.
        chat_template: renders conversations; present also when the model has no template (rendering says so).
        special_tokens: "bos_token" and the like, by name.
        eos_token_ids: the tokens that end a text or a turn.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pieces: PieceTable,
        chat_template: ChatTemplate,
        special_tokens: Mapping[str, str],
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self.tokenizer = tokenizer
        self.pieces = pieces
        self.chat_template = chat_template
        self.special_tokens = special_tokens
        self.eos_token_ids = eos_token_ids

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TextModel:
        """Read a Hugging Face folder. Blocks on files: a second or so for a large vocabulary.

        Raises:
            TextModelError: tokenizer.json is absent, or a file does not parse; names it.
            UnsupportedDecoder: the tokenizer's decoder is of no kind that language models use.
        """
        folder = Path(path)
        try:
            raw = (folder / "tokenizer.json").read_bytes()
        except OSError as error:
            raise TextModelError(f"{folder / 'tokenizer.json'}: {error.strerror}") from error
        try:
            tokenizer = Tokenizer.from_buffer(raw)
            decoder = msgspec.json.decode(raw, type=_TokenizerFile).decoder
        except Exception as error:  # the tokenizers library raises bare Exception
            raise TextModelError(f"{folder / 'tokenizer.json'}: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_object(folder / "tokenizer_config.json")
        special_tokens = _read_special_tokens(folder, config)
        return cls(
            tokenizer,
            PieceTable(tokenizer, decoder),
            ChatTemplate(_read_templates(folder, config), special_tokens),
            special_tokens,
            _read_eos_token_ids(folder, tokenizer, special_tokens),
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's output may be wider."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text.

        Releases the interpreter lock, so a long prompt belongs in a worker thread. Use
        `add_special_tokens=False` for a rendered chat template, which spells its own.
        """
        (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def encode_up_to(self, text: str, limit: int | None, add_special_tokens: bool = True) -> list[int]:
        """`encode`, with the text cut at its end so that there are at most `limit` tokens; None: whole.

        Special tokens stay where the tokenizer puts them, while there is room for one more.
        """
        tokens = self.encode(text, add_special_tokens)
        if limit is None or len(tokens) <= limit:
            return tokens
        num_special = self.tokenizer.num_special_tokens_to_add(False) if add_special_tokens else 0
        if limit <= num_special:
            return tokens[:limit]
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(limit - num_special)
        if not add_special_tokens:
            return list(encoding.ids)
        return list(self.tokenizer.post_process(encoding).ids)

    def encode_pair(self, first: str, second: str, limit: int | None = None) -> list[int]:
        """Two texts as one input, as the tokenizer joins them; the second is cut to make it `limit` tokens.

        Where the first alone leaves no room, nothing is left of the second.
        """
        one, other = (self.tokenizer.encode(text, add_special_tokens=False) for text in (first, second))
        if limit is not None:
            room = limit - len(one.ids) - self.tokenizer.num_special_tokens_to_add(True)
            other.truncate(max(0, room))
        return list(self.tokenizer.post_process(one, other).ids)

    def decode(
        self, token_ids: Iterable[int], skip_special_tokens: bool = True, continues: bool = False
    ) -> str:
        """Return the text of token ids: exactly what `decoder()` gives piece by piece."""
        decoder = self.decoder(skip_special_tokens, continues)
        return decoder.push(token_ids) + decoder.flush()

    def decoder(
        self, skip_special_tokens: bool = True, continues: bool = False, shown_tokens: Iterable[str] = ()
    ) -> IncrementalDecoder:
        """Start decoding one stream of tokens. See `IncrementalDecoder`.

        Args:
            skip_special_tokens: leave out tokens that mark structure.
            continues: the tokens go on from an earlier text.
            shown_tokens: spellings of special tokens that are not left out, if there are such tokens.
        """
        ids = map(self.tokenizer.token_to_id, shown_tokens)
        return IncrementalDecoder(
            self.pieces,
            skip_special_tokens=skip_special_tokens,
            continues=continues,
            shown_tokens=frozenset(token_id for token_id in ids if token_id is not None),
        )

    @cached_property
    def longest_piece(self) -> int:
        """Most characters that one token stands for. The first use takes a tenth of a second."""
        return max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def piece_search(self) -> PieceSearch:
        """Finds tokens by a text in them. The first use takes up to half a second."""
        return PieceSearch(self.pieces, self.vocab_size)

    def added_token_ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Return the ids of those texts that the tokenizer was taught to take for one token each."""
        added = self.tokenizer.get_added_tokens_decoder()
        found = {text: self.tokenizer.token_to_id(text) for text in texts}
        return {text: token_id for text, token_id in found.items() if token_id in added}

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token inside a text, perhaps part of a character (`bytes` of a log-probability)."""
        return self.pieces[token_id]


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object, or {} when there is no such file."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise TextModelError(f"{path}: {error}") from error
    return found


def _read_special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Collect named special tokens; tokenizer_config.json wins over special_tokens_map.json."""
    found: dict[str, str] = {}
    for source in (_read_object(folder / "special_tokens_map.json"), config):
        for name in SPECIAL_TOKEN_NAMES:
            value = source.get(name)
            if isinstance(value, dict):  # a saved AddedToken
                value = value.get("content")
            if isinstance(value, str):
                found[name] = value
    return found


def _read_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Collect chat templates by name: files as transformers 5 writes them, else the older places."""
    templates: dict[str, str] = {}
    inline = config.get("chat_template", _read_object(folder / "chat_template.json").get("chat_template"))
    if isinstance(inline, str):
        templates["default"] = inline
    elif isinstance(inline, list):
        templates.update({entry["name"]: entry["template"] for entry in inline})
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    file = folder / "chat_template.jinja"
    if file.exists():
        templates["default"] = file.read_text(encoding="utf-8")
    return templates


def _read_eos_token_ids(
    folder: Path, tokenizer: Tokenizer, special_tokens: dict[str, str]
) -> tuple[int, ...]:
    """Take generation_config.json's end tokens, else config.json's, and the tokenizer's own beside them."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_object(folder / name).get("eos_token_id")
        if value is not None:
            found += value if isinstance(value, list) else [value]
            break
    if (eos := special_tokens.get("eos_token")) and (token_id := tokenizer.token_to_id(eos)) is not None:
        found.append(token_id)
    return tuple(dict.fromkeys(found))
