"""The largest logit of each row and, with noise from the caller, a sample: one program a row.

argmax(logits / temperature + gumbel noise) is a draw from softmax(logits / temperature).

Source: Gumbel 1954; Maddison et al. 2014, "A* Sampling", arXiv:1411.0030.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["argmax", "gumbel_argmax", "reference_argmax"]

BLOCK = 1024  # logits at once


@triton.jit
def _argmax(logits, noise, temperatures, ids, finite, vocab_size, NOISY: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best = -float("inf")
    best_id = vocab_size
    bad = 0
    for begin in range(0, vocab_size, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < vocab_size
        values = tl.load(logits + row * vocab_size + at, mask=inside, other=0.0).to(tl.float32)
        good = tl.abs(values) < float("inf")  # false for NaN, too
        bad += tl.sum(tl.where(good, 0, 1), axis=0)
        if NOISY:
            values = values / tl.load(temperatures + row)
            values += tl.load(noise + row * vocab_size + at, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside & (values == values), values, -float("inf"))
        block_best = tl.max(values, axis=0)
        # the lowest id of those that are equal
        block_id = tl.min(tl.where(inside & (values == block_best), at, vocab_size), axis=0)
        best_id = tl.where((block_best > best) | (best_id == vocab_size), block_id, best_id)
        best = tl.maximum(best, block_best)
    tl.store(ids + row, best_id)
    tl.store(finite + row, bad == 0)


def _launch(
    logits: torch.Tensor, noise: torch.Tensor, temperatures: torch.Tensor, *, noisy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if not logits.is_contiguous() or not noise.is_contiguous() or not logits.shape[1]:
        raise ValueError(f"logits {list(logits.shape)} must be contiguous, with at least one column")
    ids = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
    finite = torch.empty(len(logits), dtype=torch.int8, device=logits.device)
    if len(logits):
        _argmax[(len(logits),)](
            logits, noise, temperatures, ids, finite, logits.shape[1], NOISY=noisy, BLOCK=BLOCK
        )
    return ids, finite.bool()


def argmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of [num_rows, vocab_size]: the lowest id of a largest logit, and whether all are finite.

    Where not all are finite, the id means nothing.

    Raises:
        ValueError: the logits are not contiguous, or have no columns.
    """
    return _launch(logits, logits, logits, noisy=False)


def gumbel_argmax(
    logits: torch.Tensor, noise: torch.Tensor, temperatures: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`argmax` of logits / temperature + noise: [num_rows, vocab_size] both; temperatures are [num_rows].

    Raises:
        ValueError: a shape does not fit, or see argmax.
    """
    if noise.shape != logits.shape or temperatures.shape != logits.shape[:1]:
        raise ValueError(f"logits {list(logits.shape)}, noise {list(noise.shape)}")
    return _launch(logits, noise, temperatures, noisy=True)


def reference_argmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`argmax` in plain torch."""
    best = logits.amax(dim=1, keepdim=True)
    ids = torch.arange(logits.shape[1], device=logits.device)
    return torch.where(logits == best, ids, logits.shape[1]).amin(dim=1), logits.isfinite().all(dim=1)
