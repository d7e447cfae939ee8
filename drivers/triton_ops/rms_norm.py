"""RMSNorm fused with the addition of the residual before it: one program a token, so rows cannot mix.

Source: Zhang and Sennrich 2019, "Root mean square layer normalization", arXiv:1910.07467.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["add_rms_norm", "reference_add_rms_norm"]


@triton.jit
def _add_rms_norm(x, residual, weight, out, size, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    at = tl.arange(0, BLOCK)
    inside = at < size
    wide = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    wide += tl.load(residual + row + at, mask=inside, other=0.0).to(tl.float32)
    total = wide.to(residual.dtype.element_ty)
    tl.store(residual + row + at, total, mask=inside)
    wide = total.to(tl.float32)  # the norm reads the sum as later layers will: rounded
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / size + epsilon)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + at, wide * scale * factor, mask=inside)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Add x to the residual in place, and return the norm of the sum.

    Args:
        x: [num_tokens, size], contiguous.
        residual: likewise, in the same number format. This operation changes it.
        weight: [size].
        epsilon: added to the mean square.

    Returns:
        [num_tokens, size] in x's number format; computed in fp32.

    Raises:
        ValueError: the shapes do not fit, or a tensor is not contiguous.
    """
    if x.shape != residual.shape or weight.shape != x.shape[-1:] or x.dtype != residual.dtype:
        raise ValueError(f"x {list(x.shape)}, residual {list(residual.shape)}, weight {list(weight.shape)}")
    if not (x.is_contiguous() and residual.is_contiguous() and weight.is_contiguous()):
        raise ValueError("x, residual and weight must be contiguous")
    out = torch.empty_like(x)
    num_tokens, size = x.shape
    if num_tokens:
        _add_rms_norm[(num_tokens,)](
            x, residual, weight, out, size, epsilon, BLOCK=triton.next_power_of_2(size)
        )
    return out


def reference_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm and the new residual, in plain torch."""
    total = (x.float() + residual.float()).to(x.dtype)
    wide = total.float()
    scale = torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + epsilon)
    return (wide * scale * weight.float()).to(x.dtype), total
