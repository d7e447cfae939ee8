"""x @ weight.T in tiles of one fixed shape, for where a library's choice of kernel depends on the batch.

Every tile sums over the inner dimension in steps of STEP from 0 on, whatever the number of rows, so a row's
bits are its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["linear", "reference_linear"]

ROWS, COLUMNS, STEP = 16, 64, 64  # of a tile; constants, because they are part of the order of summation


# the compiler must not make other code for another number of tokens
@triton.jit(do_not_specialize=["num_tokens"])
def _linear(
    x, weight, out, num_tokens, size_in, size_out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, size_in, STEP):
        at = begin + tl.arange(0, STEP)
        real = (rows < num_tokens)[:, None] & (at < size_in)[None, :]
        left = tl.load(x + rows[:, None] * size_in + at[None, :], mask=real, other=0.0).to(tl.float32)
        real = (columns < size_out)[:, None] & (at < size_in)[None, :]
        right = tl.load(weight + columns[:, None] * size_in + at[None, :], mask=real, other=0.0)
        total += tl.dot(left, tl.trans(right.to(tl.float32)), input_precision="ieee")
    real = (rows < num_tokens)[:, None] & (columns < size_out)[None, :]
    tl.store(out + rows[:, None] * size_out + columns[None, :], total, mask=real)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[num_tokens, in] @ [out, in].T -> [num_tokens, out] in the dtype of x; summed in fp32.

    Raises:
        ValueError: the shapes do not fit, or a tensor is not contiguous.
    """
    if x.shape[1] != weight.shape[1] or not x.is_contiguous() or not weight.is_contiguous():
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} must fit and be contiguous")
    out = x.new_empty(x.shape[0], weight.shape[0])
    if out.numel():
        grid = (triton.cdiv(out.shape[0], ROWS), triton.cdiv(out.shape[1], COLUMNS))
        _linear[grid](x, weight, out, x.shape[0], x.shape[1], weight.shape[0], ROWS, COLUMNS, STEP)
    return out


def reference_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same in plain torch."""
    return (x.float() @ weight.float().T).to(x.dtype)
