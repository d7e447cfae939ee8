"""Rows rounded to 8 bits, each by a scale of its own: by the rule of drivers/ops/int8.py, to the bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.int8 import Int8Rows

__all__ = ["empty_rows", "inverse_of", "round_int8", "round_rows", "scale_of"]

BLOCK = 2048  # numbers at once


@triton.jit
def scale_of(largest, are_finite):
    """What rounded numbers are multiplied by; NaN where one was not finite, so that it does not pass."""
    return tl.where(are_finite, tl.div_rn(largest, tl.full((), 127.0, tl.float32)), float("nan"))


@triton.jit
def inverse_of(largest):
    """What numbers are multiplied by before they are rounded."""
    is_something = (largest > 0.0) & (largest < float("inf"))
    some = tl.where(is_something, largest, 1.0)
    return tl.where(is_something, tl.div_rn(tl.full((), 127.0, tl.float32), some), 0.0)


@triton.jit
def round_int8(values, inverse):
    """Whole numbers, halves to even; NaN becomes 0."""
    scaled = values * inverse
    scaled = tl.where(scaled == scaled, scaled, 0.0)
    # between the bounds, adding and taking away 1.5 * 2^23 rounds; and no product is left to fuse with
    scaled = tl.minimum(tl.maximum(scaled, -127.0), 127.0)
    return ((scaled + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def _round_rows(x, out, scales, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((), tl.float32)
    num_bad = tl.zeros((), tl.int32)
    for begin in range(0, size, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        values = tl.load(x + row * size + at, mask=at < size, other=0.0).to(tl.float32)
        is_finite = tl.abs(values) < float("inf")
        num_bad += tl.sum((is_finite == 0).to(tl.int32), axis=0)
        largest = tl.maximum(largest, tl.max(tl.where(is_finite, tl.abs(values), 0.0), axis=0))
    inverse = inverse_of(largest)
    for begin in range(0, size, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        values = tl.load(x + row * size + at, mask=at < size, other=0.0).to(tl.float32)
        tl.store(out + row * size + at, round_int8(values, inverse), mask=at < size)
    tl.store(scales + row, scale_of(largest, num_bad == 0))


def round_rows(x: torch.Tensor) -> Int8Rows:
    """Round [num_rows, size], contiguous, row by row: what a product of integers reads.

    Raises:
        ValueError: the tensor is not contiguous.
    """
    if not x.is_contiguous():
        raise ValueError(f"x {list(x.shape)} must be contiguous")
    num_rows, size = x.shape
    rows = empty_rows(num_rows, size, x.device)
    if num_rows:
        _round_rows[(num_rows,)](x, rows.values, rows.scale, size, BLOCK=BLOCK)
    return rows


def empty_rows(num_rows: int, size: int, device: torch.device) -> Int8Rows:
    """Rows that a kernel is about to write."""
    return Int8Rows(
        torch.empty(num_rows, size, dtype=torch.int8, device=device),
        torch.empty(num_rows, dtype=torch.float32, device=device),
    )
