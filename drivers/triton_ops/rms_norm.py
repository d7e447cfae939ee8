"""RMSNorm, alone or fused with the addition of the residual before it: one program a row, so rows cannot mix.

Source: Zhang and Sennrich 2019, "Root mean square layer normalization", arXiv:1910.07467.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.int8 import Int8Rows
from drivers.triton_ops.rounding import empty_rows, inverse_of, round_int8, scale_of

__all__ = ["add_rms_norm", "add_rms_norm_int8", "rms_norm", "rms_norm_int8"]


@triton.jit
def _rms_norm(
    x, residual, weight, out, scales, size, epsilon,
    ADDED: tl.constexpr, INT8: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * size
    at = tl.arange(0, BLOCK)
    inside = at < size
    wide = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        wide += tl.load(residual + row + at, mask=inside, other=0.0).to(tl.float32)
        total = wide.to(residual.dtype.element_ty)
        tl.store(residual + row + at, total, mask=inside)
        wide = total.to(tl.float32)  # the norm reads the sum as later layers will: rounded
    wide = wide / tl.sqrt(tl.sum(wide * wide, axis=0) / size + epsilon)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if INT8:
        wide = wide * factor
        is_finite = tl.abs(wide) < float("inf")
        largest = tl.max(tl.where(is_finite, tl.abs(wide), 0.0), axis=0)
        tl.store(out + row + at, round_int8(wide, inverse_of(largest)), mask=inside)
        are_finite = tl.min(is_finite.to(tl.int32), axis=0) == 1
        tl.store(scales + tl.program_id(0), scale_of(largest, are_finite))
    else:
        # rounded once before the product, as the interface says
        wide = wide.to(x.dtype.element_ty).to(tl.float32)
        tl.store(out + row + at, wide * factor, mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """See `Ops.rms_norm`: [num_rows, size], contiguous.

    Raises:
        ValueError: the shapes do not fit, or a tensor is not contiguous.
    """
    out = torch.empty_like(x)
    _launch(x, None, weight, epsilon, out, None)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """See `Ops.add_rms_norm`: [num_rows, size] both, contiguous, in one number format.

    Raises:
        ValueError: the shapes do not fit, or a tensor is not contiguous.
    """
    out = torch.empty_like(x)
    _launch(x, residual, weight, epsilon, out, None)
    return out


def rms_norm_int8(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> Int8Rows:
    """See `Ops.rms_norm_int8`; shapes and errors as above."""
    num_rows, size = x.shape
    out = empty_rows(num_rows, size, x.device)
    _launch(x, None, weight, epsilon, out.values, out.scale)
    return out


def add_rms_norm_int8(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> Int8Rows:
    """See `Ops.add_rms_norm_int8`; shapes and errors as above."""
    num_rows, size = x.shape
    out = empty_rows(num_rows, size, x.device)
    _launch(x, residual, weight, epsilon, out.values, out.scale)
    return out


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    out: torch.Tensor,
    scales: torch.Tensor | None,
) -> None:
    other = x if residual is None else residual
    if x.shape != other.shape or weight.shape != x.shape[-1:] or x.dtype != other.dtype:
        raise ValueError(f"x {list(x.shape)}, residual {list(other.shape)}, weight {list(weight.shape)}")
    if not (x.is_contiguous() and other.is_contiguous() and weight.is_contiguous()):
        raise ValueError("x, residual and weight must be contiguous")
    num_rows, size = x.shape
    if num_rows:
        _rms_norm[(num_rows,)](
            x, other, weight, out, out if scales is None else scales, size, epsilon,
            ADDED=residual is not None, INT8=scales is not None, BLOCK=triton.next_power_of_2(size),
        )  # fmt: skip
