"""Products of int8 rows with int8 weights: sums in int32, which are exact, so rows are invariant in any tile.

The tile is free: no bit depends on it. In fp32 a sum is multiplied by its row's scale, then by its
output's, and the bias is added; the result is rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.int8 import Int8Rows, Int8Weight
from drivers.triton_ops.tiles import GROUP_TILES, STEP_BYTES, Tile, default_tile, fit_tile, tile_at

__all__ = ["MAX_SIZE_IN", "linear_int8", "store_scaled"]

MAX_SIZE_IN = 1 << 16  # sums of 127 * 127 stay below 2^31


@triton.jit
def store_scaled(
    total, x_scale, weight_scale, bias, out, rows, columns, num_tokens, size_out, BIASED: tl.constexpr
):  # fmt: skip
    """Sums of a tile times their two scales, and the bias: rounded once."""
    are_rows, are_columns = rows < num_tokens, columns < size_out
    by_row = tl.load(x_scale + rows, mask=are_rows, other=0.0)[:, None]
    by_column = tl.load(weight_scale + columns, mask=are_columns, other=0.0)[None, :]
    result = total.to(tl.float32) * by_row
    if BIASED:
        added = tl.load(bias + columns, mask=are_columns, other=0.0).to(tl.float32)[None, :]
        result = tl.fma(result, by_column, added)
    else:
        result = result * by_column
    tl.store(
        out + rows[:, None] * size_out + columns[None, :],
        result,
        mask=are_rows[:, None] & are_columns[None, :],
    )


# the compiler must not make other code for another number of tokens
@triton.jit(do_not_specialize=["num_tokens"])
def _linear_int8(
    x, x_scale, weight, weight_scale, bias, out, num_tokens, size_in, size_out,
    BIASED: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    GROUP_TILES: tl.constexpr,
):  # fmt: skip
    rows, columns = tile_at(tl.program_id(0), num_tokens, size_out, ROWS, COLUMNS, GROUP_TILES)
    are_rows, are_columns = rows < num_tokens, columns < size_out
    step = tl.arange(0, STEP)
    left_at = x + rows[:, None] * size_in + step[None, :]
    right_at = weight + columns[:, None] * size_in + step[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for begin in range(0, size_in, STEP):
        if EVEN:
            left = tl.load(left_at, mask=are_rows[:, None], other=0)
            right = tl.load(right_at)
        else:
            inside = (begin + step < size_in)[None, :]
            left = tl.load(left_at, mask=are_rows[:, None] & inside, other=0)
            right = tl.load(right_at, mask=are_columns[:, None] & inside, other=0)
        total = tl.dot(left, tl.trans(right), total, out_dtype=tl.int32)
        left_at += STEP
        right_at += STEP
    store_scaled(
        total, x_scale, weight_scale, bias, out, rows, columns, num_tokens, size_out, BIASED
    )  # fmt: skip


def linear_int8(
    x: Int8Rows, weight: Int8Weight, bias: torch.Tensor | None = None, tile: Tile | None = None
) -> torch.Tensor:
    """[num_tokens, in] @ [out, in].T + [out] -> [num_tokens, out] in the weight's dtype.

    Args:
        x: rounded rows.
        weight: of at most 65536 inputs.
        bias: contiguous, any number format, or None.
        tile: of any shape; None: one that suits the number of tokens.

    Raises:
        ValueError: the shapes do not fit, or a tensor is not contiguous.
    """
    (num_tokens, size_in), (size_out, size) = x.values.shape, weight.values.shape
    if size_in != size or size > MAX_SIZE_IN:
        raise ValueError(f"rows of {size_in} for an int8 weight of {size} inputs, at most {MAX_SIZE_IN}")
    if bias is not None and bias.shape != (size_out,):
        raise ValueError(f"bias {list(bias.shape)} must fit an int8 weight of {size_out} outputs")
    parts = (x.values, x.scale, weight.values, weight.scale, *(() if bias is None else (bias,)))
    if not all(part.is_contiguous() for part in parts):
        raise ValueError("rows, weight, scales and bias must be contiguous")
    out = torch.empty(num_tokens, size_out, dtype=weight.dtype, device=x.values.device)
    if out.numel():
        tile = fit_tile(tile or default_tile(num_tokens), 1)
        _linear_int8[(tile.num_programs(num_tokens, size_out),)](
            x.values, x.scale, weight.values, weight.scale, weight.scale if bias is None else bias, out,
            num_tokens, size_in, size_out,
            BIASED=bias is not None, EVEN=size_in % STEP_BYTES == 0 and size_out % tile.columns == 0,
            ROWS=tile.rows, COLUMNS=tile.columns, STEP=STEP_BYTES, GROUP_TILES=GROUP_TILES,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out
