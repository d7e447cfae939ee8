"""A GGUF file's vocabulary as the tokenizer.json and tokenizer_config.json that the same model would have."""

from __future__ import annotations

import json
import math
from typing import Any

from drivers.model.errors import ModelError
from drivers.model.gguf.file import GgufFile
from drivers.model.gguf.pre_tokenizers import PRE_TOKENIZERS
from drivers.model.gguf.vocabulary import TokenKind, Vocabulary

__all__ = ["hugging_face_tokenizer", "hugging_face_tokenizer_config"]

SPACE = "▁"  # how a SentencePiece vocabulary spells a space
MERGEABLE = (TokenKind.NORMAL, TokenKind.USER_DEFINED)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def hugging_face_tokenizer(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of tokenizer.json: the file's own where it has one, else put together from its parts.

    Raises:
        ModelError: naming the kind of tokenizer that is not supported, or the part that is missing or wrong.
    """
    if embedded := file.get("tokenizer.huggingface.json", ""):
        try:
            whole = json.loads(embedded)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{file.path}: tokenizer.huggingface.json: {error}") from None
        if not isinstance(whole, dict):
            raise ModelError(f"{file.path}: tokenizer.huggingface.json is not a JSON object")
        return whole
    match vocabulary.model:
        case "llama":
            return _sentence_piece(file, vocabulary)
        case "gpt2":
            return _byte_level(file, vocabulary)
        case other:
            raise ModelError(
                f"{file.path}: tokenizer.ggml.model {other} is not supported; supported: llama, gpt2"
            )


def hugging_face_tokenizer_config(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of tokenizer_config.json: special tokens and chat templates.

    Raises:
        ModelError: a template is not a string.
    """
    config: dict[str, Any] = {
        name: vocabulary.tokens[token_id] for name, token_id in vocabulary.special.items()
    }
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    templates = {"default": file.get("tokenizer.chat_template", "")}
    for name in file.get_list("tokenizer.chat_templates", str):
        templates[name] = file.get(f"tokenizer.chat_template.{name}", "")
    named = [{"name": name, "template": template} for name, template in templates.items() if template]
    if named:
        config["chat_template"] = named if len(named) > 1 else named[0]["template"]
    return config


def _tokenizer(
    file: GgufFile, vocabulary: Vocabulary, begins_text: bool, model: dict[str, Any], **parts: Any
) -> dict[str, Any]:
    """Put a tokenizer.json together around its model."""
    special = vocabulary.special
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": kind is not TokenKind.USER_DEFINED,
            }
            for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
            if kind in (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.USER_DEFINED)
        ],
        **parts,
        "post_processor": _template(
            vocabulary,
            special.get("bos_token") if file.get("tokenizer.ggml.add_bos_token", begins_text) else None,
            special.get("eos_token") if file.get("tokenizer.ggml.add_eos_token", False) else None,
        ),
        "model": model,
    }  # fmt: skip


def _template(vocabulary: Vocabulary, bos: int | None, eos: int | None) -> dict[str, Any] | None:
    """What stands around a text; None: nothing."""
    around = [token_id for token_id in (bos, eos) if token_id is not None]
    if not around:
        return None

    def mark(token_id: int | None) -> list[dict[str, Any]]:
        if token_id is None:
            return []
        return [{"SpecialToken": {"id": vocabulary.tokens[token_id], "type_id": 0}}]

    def sentence(name: str) -> list[dict[str, Any]]:
        return [*mark(bos), {"Sequence": {"id": name, "type_id": 0}}, *mark(eos)]

    tokens = {vocabulary.tokens[token_id]: token_id for token_id in around}
    return {
        "type": "TemplateProcessing",
        "single": sentence("A"),
        "pair": [*sentence("A"), *sentence("B")],
        "special_tokens": {
            token: {"id": token, "ids": [token_id], "tokens": [token]} for token, token_id in tokens.items()
        },
    }


def _bpe(vocabulary: Vocabulary, merges: list[tuple[str, str]], **settings: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: token_id for token_id, token in enumerate(vocabulary.tokens)},
        "merges": merges,
    } | settings


def _byte_level(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    name = file.get("tokenizer.ggml.pre", "default")
    cut = PRE_TOKENIZERS.get(name)
    if cut is None:
        raise ModelError(
            f"{file.path}: tokenizer.ggml.pre {name} is not supported; supported: {', '.join(PRE_TOKENIZERS)}"
        )
    lines = file.get_list("tokenizer.ggml.merges", str)
    if not lines:
        raise ModelError(f"{file.path}: tokenizer.ggml.merges is missing")
    known = set(vocabulary.tokens)
    merges = []
    for line in lines:
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= known:
            raise ModelError(f"{file.path}: tokenizer.ggml.merges: {line!r:.80} is not of the vocabulary")
        merges.append((left, right))
    pieces = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.patterns
    ]
    return _tokenizer(
        file,
        vocabulary,
        cut.begins_text,
        _bpe(vocabulary, merges, ignore_merges=cut.takes_whole_words),
        normalizer={"type": "NFC"} if cut.composes else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*pieces, BYTE_LEVEL]},
        decoder=BYTE_LEVEL,
    )


def _sentence_piece(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    scores = file.get_list("tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary):
        raise ModelError(f"{file.path}: tokenizer.ggml.scores: {len(scores)} for {len(vocabulary)} tokens")
    if any(map(math.isnan, scores)):
        raise ModelError(f"{file.path}: tokenizer.ggml.scores: a score is not a number")
    prefix = file.get("tokenizer.ggml.add_space_prefix", True)
    spell = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    unspell = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return _tokenizer(
        file,
        vocabulary,
        True,
        _bpe(
            vocabulary,
            _merges_by_score(vocabulary, scores),
            unk_token=vocabulary.tokens[vocabulary.special["unk_token"]],
            fuse_unk=True,
            byte_fallback=True,
        ),
        normalizer={
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": SPACE}] if prefix else []), spell],
        },
        pre_tokenizer=None,
        decoder={
            "type": "Sequence",
            "decoders": [unspell, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefix else [])],
        },
    )


def _merges_by_score(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that spells a third, best first: SentencePiece merges whatever scores highest.

    Source: Kudo and Richardson 2018, arXiv:1808.06226.
    """
    known = {
        token: token_id
        for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in MERGEABLE
    }
    ranked = []
    for token, token_id in known.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                ranked.append((-scores[token_id], token_id, known[left], known[right], left, right))
    ranked.sort()
    return [pair[4:] for pair in ranked]
