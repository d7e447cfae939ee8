"""silu(gate) * up, elementwise. Source: Shazeer 2020, "GLU variants", arXiv:2002.05202."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["silu_mul"]

BLOCK = 1024  # numbers a program


@triton.jit
def _silu_mul(gate_up, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_up + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + at, gate / (1.0 + tl.exp(-gate)) * up, mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[num_tokens, 2 * size], gate first, contiguous -> [num_tokens, size]; computed in fp32.

    Raises:
        ValueError: the last dimension is odd, or the tensor is not contiguous.
    """
    num_tokens, double = gate_up.shape
    if double % 2 or not gate_up.is_contiguous():
        raise ValueError(f"gate_up {list(gate_up.shape)} must be contiguous, with an even last dimension")
    size = double // 2
    out = gate_up.new_empty(num_tokens, size)
    if out.numel():
        _silu_mul[(num_tokens, triton.cdiv(size, BLOCK))](gate_up, out, size, BLOCK=BLOCK)
    return out
