"""The vocabulary in a GGUF file: tokens, what kind each is, and which of them have a name."""

from __future__ import annotations

import enum

from attrs import frozen

from drivers.model.errors import ModelError
from drivers.model.gguf.file import GgufFile

__all__ = ["TokenKind", "Vocabulary"]

SPECIAL_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",  # the format spells it so
    "pad_token": "tokenizer.ggml.padding_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}
SENTENCE_PIECE_DEFAULTS = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# A file names one token that ends a text, but models end a turn by these too.
END_NAMES = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>"}
    | {"<end_of_turn>", "<|return|>", "<|EOT|>", "<｜end▁of▁sentence｜>"}
)


class TokenKind(enum.IntEnum):
    """What a token is for, by the format's numbers."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@frozen(eq=False)
class Vocabulary:
    """Tokens by id; no two are spelled alike.

    Attributes:
        model: the kind of tokenizer, by the format's word: "gpt2", "llama".
        tokens: spellings.
        kinds: what each token is for.
        special: ids by name, "bos_token" and the like.
        end_tokens: ids of the tokens that end a text or a turn, the file's own first.
    """

    model: str
    tokens: tuple[str, ...]
    kinds: tuple[TokenKind, ...]
    special: dict[str, int]
    end_tokens: tuple[int, ...]

    @classmethod
    def read(cls, file: GgufFile) -> Vocabulary:
        """Take the vocabulary from a file's metadata.

        Raises:
            ModelError: there is none, its parts differ in length, or an id lies outside it.
        """
        tokens = file.get_list("tokenizer.ggml.tokens", str)
        if not tokens:
            raise ModelError(f"{file.path}: tokenizer.ggml.tokens is missing; without a vocabulary no text")
        numbers = file.get_list("tokenizer.ggml.token_type", int) or [int(TokenKind.NORMAL)] * len(tokens)
        if len(numbers) != len(tokens):
            raise ModelError(
                f"{file.path}: tokenizer.ggml.token_type: {len(numbers)} types for {len(tokens)} tokens"
            )
        try:
            kinds = tuple(map(TokenKind, numbers))
        except ValueError as error:
            raise ModelError(f"{file.path}: tokenizer.ggml.token_type: {error}") from None
        model = file.get("tokenizer.ggml.model", "(none given)")
        special = dict(SENTENCE_PIECE_DEFAULTS) if model == "llama" and len(tokens) > 2 else {}
        for name, key in SPECIAL_KEYS.items():
            if key in file.metadata:
                special[name] = _token_id(file, key, len(tokens))
        ends = [_token_id(file, key, len(tokens)) for key in END_KEYS if key in file.metadata]
        ends += [
            token_id
            for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind is TokenKind.CONTROL and token in END_NAMES
        ]
        return cls(model, _spell_apart(file, tokens), kinds, special, tuple(dict.fromkeys(ends)))

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


def _token_id(file: GgufFile, key: str, num_tokens: int) -> int:
    token_id = file.get(key, 0)
    if not 0 <= token_id < num_tokens:
        raise ModelError(f"{file.path}: {key} is {token_id}, outside the vocabulary of {num_tokens}")
    return token_id


def _spell_apart(file: GgufFile, tokens: list[str]) -> tuple[str, ...]:
    """Rows that pad a vocabulary repeat a spelling now and then; only the first can ever be meant by it."""
    seen: set[str] = set()
    unique = []
    for token_id, token in enumerate(tokens):
        unique.append(f"[UNUSED{token_id}]" if token in seen or not token else token)
        seen.add(unique[-1])
    if len(seen) < len(tokens):
        raise ModelError(f"{file.path}: tokenizer.ggml.tokens: spellings repeat, and so do their substitutes")
    return tuple(unique)
