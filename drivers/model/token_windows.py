"""Spaces' last tokens in order, as a device has them: of penalties that are about the last few only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from drivers.ops.transfer import send
from native.sampling import Tally, Window

__all__ = ["Look", "TokenWindows"]


class Look(NamedTuple):
    """A draw that looks at a window."""

    row: int  # of logits
    place: int  # of the space's tokens and counts
    tally: Tally
    window: Window


class TokenWindows:
    """A row of tokens by position for each place that asks.

    Args:
        max_len: positions of a space.
        device: where tokens are drawn.
    """

    def __init__(self, max_len: int, device: torch.device) -> None:
        self._max_len = max_len
        self._tokens = torch.zeros((0, max_len + 1), dtype=torch.int32, device=device)
        self._drawn: torch.Tensor | None = None  # [3, looks]: rows of logits, places, positions

    def prepare(self, counts: torch.Tensor, looks: Sequence[Look], stale: Sequence[Look]) -> None:
        """Set rows of counts to what lies in windows, for the step that is launched next.

        Args:
            counts: see `Counted`.
            looks: of the step.
            stale: those of them whose tokens the host sends.
        """
        self._drawn = None
        if not looks:
            return
        device = counts.device
        if len(self._tokens) < len(counts):
            grown = self._tokens.new_zeros((len(counts), self._max_len + 1))
            grown[: len(self._tokens)] = self._tokens
            self._tokens = grown
        if stale:
            self._write(stale)
        told = [
            (look.row, look.place, look.tally.position, look.window.size, look.window.num_prompt_tokens)
            for look in looks
        ]
        sent = send(torch.tensor(told, dtype=torch.int64).T.contiguous(), device)
        self._drawn = sent[:3]
        self._count(counts, sent[1:], max(look.window.size for look in looks))

    def _write(self, stale: Sequence[Look]) -> None:
        """Tokens that the host knows, to where they belong."""
        entries = [
            np.stack(np.broadcast_arrays(look.place, look.tally.position + np.arange(-len(known), 0), known))
            for look, known in ((look, look.window.tokens) for look in stale)
        ]
        sent = send(torch.from_numpy(np.concatenate(entries, axis=1)), self._tokens.device)
        self._tokens[sent[0], sent[1]] = sent[2].to(torch.int32)

    def _count(self, counts: torch.Tensor, looks: torch.Tensor, most: int) -> None:
        """Count windows of at most so many tokens: `looks` are places, ends, sizes, and prompts' lengths."""
        places, ends, sizes, num_prompt = looks
        vocab_size = counts.shape[1]
        back = torch.arange(1, 1 + min(most, self._max_len), device=counts.device)
        positions = ends[:, None] - back
        tokens = self._tokens[places[:, None], positions.clamp(min=0)].to(torch.int64)
        is_in = (positions >= 0) & (back <= sizes[:, None]) & (tokens >= 0) & (tokens < vocab_size)
        is_output = is_in & (positions >= num_prompt[:, None])
        at = (places[:, None] * vocab_size + torch.where(is_in, tokens, 0)).flatten()
        counts.index_fill_(0, places, 0)
        flat = counts.view(-1)
        flat.scatter_reduce_(0, at, is_in.flatten().to(counts.dtype), "amax")
        flat.scatter_add_(0, at, is_output.flatten().to(counts.dtype))

    def take(self, ids: torch.Tensor) -> None:
        """Tokens were drawn in the step that was prepared: [at least as many as rows of logits], int64."""
        if self._drawn is not None:
            rows, places, positions = self._drawn
            self._tokens[places, positions] = ids[rows].to(torch.int32)
