"""silu(gate) * up, elementwise. Source: Shazeer 2020, "GLU variants", arXiv:2002.05202."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.int8 import Int8Rows
from drivers.triton_ops.rounding import empty_rows, inverse_of, round_int8, scale_of

__all__ = ["silu_mul", "silu_mul_int8"]

BLOCK = 1024  # numbers a program
INT8_BLOCK = 4096  # numbers at once: a row's scale must be known before the first of them is rounded
INT8_WARPS = 8


@triton.jit
def _load_product(gate_up, row, at, size):
    inside = at < size
    gate = tl.load(gate_up + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _silu_mul(gate_up, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + row * size + at, _load_product(gate_up, row, at, size), mask=at < size)


@triton.jit
def _silu_mul_int8(gate_up, out, scales, size, BLOCK: tl.constexpr):
    """Products are computed twice, once for the largest and once to be rounded: they need not be stored."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((), tl.float32)
    num_bad = tl.zeros((), tl.int32)
    for begin in range(0, size, BLOCK):
        product = _load_product(gate_up, row, begin + tl.arange(0, BLOCK), size)
        is_finite = tl.abs(product) < float("inf")
        num_bad += tl.sum((is_finite == 0).to(tl.int32), axis=0)
        largest = tl.maximum(largest, tl.max(tl.where(is_finite, tl.abs(product), 0.0), axis=0))
    inverse = inverse_of(largest)
    for begin in range(0, size, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        product = _load_product(gate_up, row, at, size)
        tl.store(out + row * size + at, round_int8(product, inverse), mask=at < size)
    tl.store(scales + row, scale_of(largest, num_bad == 0))


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[num_tokens, 2 * size], gate first, contiguous -> [num_tokens, size]; computed in fp32.

    Raises:
        ValueError: the last dimension is odd, or the tensor is not contiguous.
    """
    num_tokens, size = _check(gate_up)
    out = gate_up.new_empty(num_tokens, size)
    if out.numel():
        _silu_mul[(num_tokens, triton.cdiv(size, BLOCK))](gate_up, out, size, BLOCK=BLOCK)
    return out


def silu_mul_int8(gate_up: torch.Tensor) -> Int8Rows:
    """See `Ops.silu_mul_int8`; shapes and errors as above."""
    num_tokens, size = _check(gate_up)
    out = empty_rows(num_tokens, size, gate_up.device)
    if num_tokens:
        _silu_mul_int8[(num_tokens,)](
            gate_up, out.values, out.scale, size, BLOCK=INT8_BLOCK, num_warps=INT8_WARPS
        )
    return out


def _check(gate_up: torch.Tensor) -> tuple[int, int]:
    num_tokens, double = gate_up.shape
    if double % 2 or not gate_up.is_contiguous():
        raise ValueError(f"gate_up {list(gate_up.shape)} must be contiguous, with an even last dimension")
    return num_tokens, double // 2
