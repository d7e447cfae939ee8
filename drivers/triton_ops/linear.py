"""x @ weight.T in tiles of fixed shapes, for where a library's choice of kernel depends on the batch.

Every tile sums over the inner dimension in steps of STEP from 0 on, whatever the number of rows, so a row's
bits are its own. The highest tiles serve prompts; `TritonLinear` also uses those lower ones that it saw, on
this device and with this weight, to give every row the bits that the highest gives it. A low tile may go to
another matrix instruction: on Hopper 16 rows are `mma`, 64 and more `wgmma`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.tiling import probe_rows
from drivers.triton_ops.operands import operand_format

__all__ = ["HEIGHTS", "TritonLinear", "linear", "reference_linear"]

STEP = 64  # of the inner dimension; a constant, because it is part of the order of summation
HEIGHTS = (16, 64, 128)  # rows of a tile
COLUMNS = {16: 32, 64: 128, 128: 128}  # by height: narrow tiles, so that few rows still fill the device
NUM_WARPS = {16: 4, 64: 4, 128: 8}


# the compiler must not make other code for another number of tokens
@triton.jit(do_not_specialize=["num_tokens"])
def _linear(
    x, weight, bias, out, num_tokens, size_in, size_out,
    BIASED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, size_in, STEP):
        at = begin + tl.arange(0, STEP)
        real = (rows < num_tokens)[:, None] & (at < size_in)[None, :]
        left = tl.load(x + rows[:, None] * size_in + at[None, :], mask=real, other=0.0).to(OPERAND)
        real = (columns < size_out)[:, None] & (at < size_in)[None, :]
        right = tl.load(weight + columns[:, None] * size_in + at[None, :], mask=real, other=0.0).to(OPERAND)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    if BIASED:
        # rounded once before it, as a product and a sum are
        total = total.to(out.dtype.element_ty).to(tl.float32)
        total += tl.load(bias + columns, mask=columns < size_out, other=0.0).to(tl.float32)[None, :]
    real = (rows < num_tokens)[:, None] & (columns < size_out)[None, :]
    tl.store(out + rows[:, None] * size_out + columns[None, :], total, mask=real)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, height: int = HEIGHTS[0]
) -> torch.Tensor:
    """[num_tokens, in] @ [out, in].T + [out] -> [num_tokens, out] in the dtype of x; summed in fp32.

    Args:
        x: contiguous.
        weight: contiguous.
        bias: contiguous, or None.
        height: rows of a tile, one of HEIGHTS.

    Raises:
        ValueError: the shapes do not fit, or a tensor is not contiguous.
    """
    if x.shape[1] != weight.shape[1] or not x.is_contiguous() or not weight.is_contiguous():
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} must fit and be contiguous")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_contiguous()):
        raise ValueError(f"bias {list(bias.shape)} must fit weight {list(weight.shape)} and be contiguous")
    out = x.new_empty(x.shape[0], weight.shape[0])
    if out.numel():
        columns = COLUMNS[height]
        grid = (triton.cdiv(out.shape[0], height), triton.cdiv(out.shape[1], columns))
        _linear[grid](
            x, weight, weight if bias is None else bias, out, x.shape[0], x.shape[1], weight.shape[0],
            BIASED=bias is not None, ROWS=height, COLUMNS=columns, STEP=STEP,
            OPERAND=operand_format(weight.dtype), num_warps=NUM_WARPS[height],
        )  # fmt: skip
    return out


class TritonLinear:
    """`linear` in tiles as high as the number of rows fills, of the heights that agree with the highest."""

    def __init__(self) -> None:
        self._heights: dict[tuple[object, ...], tuple[int, ...]] = {}

    def heights(self, weight: torch.Tensor) -> tuple[int, ...]:
        """Those in use for weights like this one, ascending; verifies on first sight."""
        key = (weight.shape, weight.dtype, weight.device)
        if (heights := self._heights.get(key)) is None:
            heights = self._heights[key] = _verify(weight)
        return heights

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See linear."""
        heights = self.heights(weight)
        fitting = [height for height in heights if 2 * x.shape[0] > height]
        return linear(x, weight, bias, fitting[-1] if fitting else heights[0])


def _verify(weight: torch.Tensor) -> tuple[int, ...]:
    rows = probe_rows(weight, HEIGHTS[-1])
    expected = linear(rows, weight, None, HEIGHTS[-1])
    return tuple(height for height in HEIGHTS if torch.equal(linear(rows, weight, None, height), expected))


def reference_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same in plain torch."""
    out = (x.float() @ weight.float().T).to(x.dtype)
    return out if bias is None else out + bias
