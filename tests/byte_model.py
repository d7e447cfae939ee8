"""A model for tests whose tokens are bytes: its text files, and what `syscalls.system.Model` says of it.

Token ids 0 to 255 are bytes, and a few more are special, so that a text and its tokens can be told from one
another by eye.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from syscalls.embedding import EmbeddingInfo
from syscalls.system import Model

END, USER, ASSISTANT, SYSTEM = 256, 257, 258, 259
SPECIAL_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 4096
VECTOR_SIZE = 16


def write_model_folder(
    folder: Path,
    *,
    has_template: bool = True,
    template: str = CHAT_TEMPLATE,
    more_special_tokens: tuple[str, ...] = (),
) -> Path:
    """Write the text files of a model whose tokens are bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {character: byte for byte, character in enumerate(_list_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (*SPECIAL_TOKENS, *more_special_tokens)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    if has_template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def _list_byte_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)]


def read_tokens(tokens: tuple[int, ...] | list[int]) -> str:
    """Return tokens as text, special ones spelled out."""
    return b"".join(
        bytes([token]) if token < 256 else SPECIAL_TOKENS[token - 256].encode() for token in tokens
    ).decode()


def count_tokens(tokens: Sequence[int], *, normalise: bool) -> bytes:
    """The vector of an input: how often it has tokens of each of VECTOR_SIZE kinds."""
    counts = [0.0] * VECTOR_SIZE
    for token in tokens:
        counts[token % VECTOR_SIZE] += 1.0
    length = math.sqrt(sum(count * count for count in counts)) if normalise else 1.0
    return struct.pack(f"<{VECTOR_SIZE}f", *(count / length for count in counts))


def make_model(path: Path, name: str = "scripted") -> Model:
    """Describe a model whose text files are in `path`."""
    return Model(
        name=name,
        path=str(path),
        max_model_len=CONTEXT,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(END,),
        dtype="float32",
        hash="ab" * 16,
        num_parameters=1_200_000,
        created=1_700_000_000,
        fingerprint="fp-scripted",
        embedding=EmbeddingInfo(VECTOR_SIZE, ("last", "mean"), (8,)),
    )
