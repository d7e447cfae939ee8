"""What a number format costs: how far a model's next-token distributions move from the unquantised ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from drivers.model.errors import ModelError
from drivers.model.native_transformer import NativeTransformer
from drivers.ops.batch import ContiguousPages
from llmos.device import Quality, Row, choose_kv_format
from native.arrays import aligned_empty

__all__ = ["SAMPLE_TEXT", "measure_quality", "read_tokens"]

SAMPLE_TEXT = Path(__file__).with_name("sample.txt")
MAX_TOKENS = 512
ROWS_AT_ONCE = 64  # logits of so many positions are held at a time
TOKENS_PER_PAGE = 64


def read_tokens(
    text: Path, tokenizer_folder: Path, vocab_size: int, limit: int
) -> tuple[tuple[int, ...], str]:
    """The first tokens of a text, and what they are.

    A model without a tokenizer.json gets pseudo-random ids instead.

    Args:
        text: a UTF-8 file.
        tokenizer_folder: where tokenizer.json is.
        vocab_size: of the model.
        limit: most tokens.

    Raises:
        ModelError: the text cannot be read, or gives less than two tokens.
    """
    limit = min(limit, MAX_TOKENS)
    tokenizer = tokenizer_folder / "tokenizer.json"
    if not tokenizer.is_file():
        return tuple(np.random.default_rng(0).integers(0, vocab_size, limit).tolist()), "random tokens"
    try:
        ids = Tokenizer.from_file(str(tokenizer)).encode(text.read_text(encoding="utf-8")).ids[:limit]
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"quality text {text}: {error}") from None
    if len(ids) < 2 or max(ids) >= vocab_size:
        raise ModelError(f"quality text {text} gives no tokens of this model")
    return tuple(ids), text.name


def measure_quality(
    reference: NativeTransformer, candidate: NativeTransformer, tokens: Sequence[int], text: str
) -> Quality:
    """Kullback-Leibler divergence and top-1 agreement of two models on a text, averaged over its positions.

    Args:
        reference: the model as it was published.
        candidate: the same in another format.
        tokens: of the text, at least one.
        text: what to call it.
    """
    divergence = agreement = 0.0
    for ours, theirs in zip(_logits(reference, tokens), _logits(candidate, tokens), strict=True):
        p, q = _log_softmax(ours), _log_softmax(theirs)
        divergence += float((np.exp(p) * (p - q)).sum())
        agreement += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    count = len(tokens)
    return Quality(
        candidate.info.dtype, candidate.info.kv, divergence / count, agreement / count, count, text
    )


def _logits(model: NativeTransformer, tokens: Sequence[int]) -> Iterator[np.ndarray]:
    """Logits at every position: [rows, vocab_size] for each block of ROWS_AT_ONCE."""
    kv = choose_kv_format(model.info.kv, model.segments, TOKENS_PER_PAGE * model.segments[0].bytes_per_token)
    num_pages = kv.num_pages(len(tokens))
    frames = [_aligned(num_pages * kv.frame_bytes) for _ in kv.segments]
    pages = model.view_pages(frames, kv, ContiguousPages(num_pages))
    for first in range(0, len(tokens), ROWS_AT_ONCE):
        # each token a row of its own, all of one space: that gives the logits of every position
        ids = tokens[first : first + ROWS_AT_ONCE]
        rows = [Row(0, first + i, (token,), True) for i, token in enumerate(ids)]
        yield model.run(rows, pages).numpy()


def _aligned(size_bytes: int) -> torch.Tensor:
    return torch.from_numpy(aligned_empty(size_bytes))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
