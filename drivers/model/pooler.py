"""From hidden states to vectors: what each space that makes one has summed so far.

A mean is a sum of float32, row by row in the order of positions, from the first: however an input is cut into
chunks, its sum has the same bits. The kernel is told the sum with each chunk, so that a process which loses
its memory goes on from there: what it must compute again it does not sum again.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import numpy as np
import numpy.typing as npt

from llmos.device import Bind, Pooling

__all__ = ["Pooler", "finish_vector"]

Floats = npt.NDArray[np.float32]


class PooledRow(Protocol):
    """A row as far as pooling goes: `llmos.device.Row` fits."""

    @property
    def asid(self) -> int: ...

    @property
    def start(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def pool(self) -> bool: ...


@attrs.define(eq=False)
class _Sum:
    """One space's vector as far as it is made."""

    pooling: Pooling
    total: Floats | None = None
    num_tokens: int = 0  # summed


class Pooler:
    """Makes vectors for all spaces of a driver.

    A driver's step calls, in this order: `bind` and `release` for its edits, and for each row
    `explain_bad_row`, `wanted`, and `take` with what the model computed.
    """

    def __init__(self) -> None:
        self._sums: dict[int, _Sum] = {}

    @property
    def num_spaces(self) -> int:
        """Spaces that make vectors, bound and not released."""
        return len(self._sums)

    def bind(self, bind: Bind) -> None:
        """Set, or set again, whether a space makes a vector; a sum goes on from `bind.total`."""
        self.release(bind.asid)
        if bind.pooling is not None:
            total = np.frombuffer(bind.total, "<f4").astype(np.float32) if bind.num_summed else None
            self._sums[bind.asid] = _Sum(bind.pooling, total, bind.num_summed)

    def release(self, asid: int) -> None:
        """Forget a space; one that was never bound is fine."""
        self._sums.pop(asid, None)

    def explain_bad_row(self, row: PooledRow) -> str | None:
        """Say why a row cannot be pooled, or None."""
        if (summed := self._sums.get(row.asid)) is None:
            return f"space {row.asid} makes no vector" if row.pool else None
        if summed.pooling.kind == "mean" and row.start > summed.num_tokens:
            return f"space {row.asid} has summed {summed.num_tokens} positions; the row starts at {row.start}"
        if row.pool and row.start + row.num_tokens <= summed.num_tokens:
            return f"space {row.asid} has summed {summed.num_tokens} positions, and its input ends before"
        if summed.pooling.kind == "cls":
            return f"space {row.asid} is to make a vector of its first token, which has seen nothing else"
        return None

    def wanted(self, row: PooledRow) -> range:
        """Which of a row's tokens, counted from its first, have hidden states that are needed."""
        if (summed := self._sums.get(row.asid)) is None:
            return range(0)
        if summed.pooling.kind == "mean":
            return range(min(row.num_tokens, max(0, summed.num_tokens - row.start)), row.num_tokens)
        return range(row.num_tokens - row.pool, row.num_tokens)

    def take(self, row: PooledRow, hidden: Floats) -> bytes | None:
        """Take in what was `wanted`.

        Args:
            row: fit for `explain_bad_row`.
            hidden: [len(wanted(row)), hidden_size], fp32.

        Returns:
            With `row.pool` the vector; of another row of a mean, the sum so far; else None.

        Raises:
            ValueError: the hidden states are not finite, or have another size than the sum that was bound.
        """
        summed = self._sums.get(row.asid)
        if summed is None or not (len(hidden) or row.pool):
            return None
        for state in hidden:
            summed.total = state.copy() if summed.total is None else summed.total + state
        summed.num_tokens += len(hidden)
        assert summed.total is not None
        if not row.pool:
            return summed.total.astype("<f4").tobytes()
        return finish_vector(summed.total / np.float32(summed.num_tokens), is_normal=summed.pooling.normalise)


def finish_vector(vector: Floats, *, is_normal: bool) -> bytes:
    """A vector as it crosses the socket, as it is or at length 1. Raises ValueError: it is not finite."""
    if not np.isfinite(vector).all():
        num_bad = int((~np.isfinite(vector)).sum())
        raise ValueError(f"{num_bad} of {len(vector)} numbers of the vector are not finite")
    if is_normal:
        exact = vector.astype(np.float64)
        length = float(np.sqrt(np.square(exact).sum()))
        vector = (exact / length if length > 0 else exact).astype(np.float32)
    return vector.astype("<f4").tobytes()
