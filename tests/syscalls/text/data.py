"""Where the text tests find tokenizers: reference data, the built-in model, or made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT = Path(__file__).parents[3]
SHARED_DATA = ROOT.parent / "shared" / "data"
STORIES = SHARED_DATA / "stories260k"
CHAT_TEMPLATES = SHARED_DATA / "chat-templates" / "templates.jsonl"
BUILTIN = ROOT / "drivers" / "builtin" / "base"

CORPUS = [
    "Once upon a time there was a little dog.",
    "日本語のテキスト、それと絵文字🙂🙂",
    "naïve café — 100 €",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def require(path: Path) -> Path:
    """Return `path`, or skip the test that needs it."""
    if not path.exists():
        pytest.skip(f"reference data is not here: {path.name}")
    return path


def save(tokenizer: Tokenizer, folder: Path, **config: object) -> Path:
    """Write a model folder with just its text files."""
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **config}))
    return folder


def make_byte_fallback() -> Tokenizer:
    """Build a small tokenizer of the Llama kind: merges over characters, bytes for the rest."""
    vocab = {token: index for index, token in enumerate(SPECIAL)}
    vocab |= {f"<0x{byte:02X}>": len(SPECIAL) + byte for byte in range(256)}
    for character in "▁abcdefghijklmnopqrstuvwxyzé日":
        vocab[character] = len(vocab)
    merges = [("▁", "a"), ("t", "h"), ("th", "e"), ("▁", "the")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def make_byte_level() -> Tokenizer:
    """Build a small tokenizer of the GPT-2 kind: merges over bytes written as characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("naïve word", normalized=False)])
    return tokenizer


def make_metaspace() -> Tokenizer:
    """Build a small tokenizer of the SentencePiece unigram kind."""
    vocab = [(token, 0.0) for token in SPECIAL] + [("▁", -2.0), ("▁the", -1.0)]
    vocab += [(character, -3.0) for character in "abcdefghijklmnopqrstuvwxyzé日"]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def make_words() -> Tokenizer:
    """Build a tokenizer without a decoder: whole words, joined by spaces."""
    words = [*SPECIAL, "once", "upon", "a", "time"]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


MAKERS = {
    "byte-fallback": make_byte_fallback,
    "byte-level": make_byte_level,
    "metaspace": make_metaspace,
    "words": make_words,
}
