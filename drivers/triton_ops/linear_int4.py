"""Products of int8 rows with weights of 4 bits: codes become 8 bits on the way, sums stay exact.

A group of 128 inputs is two halves, the low and the high parts of 64 bytes, and two products. Integers are
made of codes by one multiplication and one addition, and partial sums are never scaled: there is one
accumulator over all inputs, as in W8A8.

Source: Lin et al. 2024, "QServe", arXiv:2405.04532.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.int8 import GROUP, Int4Weight, Int8Rows
from drivers.triton_ops.linear_int8 import MAX_SIZE_IN, store_scaled
from drivers.triton_ops.tiles import GROUP_TILES, Tile, default_tile, fit_tile, tile_at

__all__ = ["linear_int4"]


@triton.jit
def _add_half(total, x, codes, scale, offset, rows, begin, num_tokens, size_in, HALF: tl.constexpr):
    at = begin + tl.arange(0, HALF)
    real = (rows < num_tokens)[:, None] & (at < size_in)[None, :]
    left = tl.load(x + rows[:, None] * size_in + at[None, :], mask=real, other=0)
    right = (codes.to(tl.int32) * scale + offset - 128).to(tl.int8)
    return tl.dot(left, tl.trans(right), total, out_dtype=tl.int32)


# the compiler must not make other code for another number of tokens
@triton.jit(do_not_specialize=["num_tokens"])
def _linear_int4(
    x, x_scale, codes, group_scale, group_offset, weight_scale, bias, out, num_tokens, size_in, size_out,
    num_groups,
    BIASED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr,
    GROUP_TILES: tl.constexpr,
):  # fmt: skip
    rows, columns = tile_at(tl.program_id(0), num_tokens, size_out, ROWS, COLUMNS, GROUP_TILES)
    are_columns = columns < size_out
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for group in range(0, num_groups):
        at = group * HALF + tl.arange(0, HALF)
        place = columns[:, None] * num_groups * HALF + at[None, :]
        pair = tl.load(codes + place, mask=are_columns[:, None], other=0)
        of_group = columns * num_groups + group
        scale = tl.load(group_scale + of_group, mask=are_columns, other=0).to(tl.int32)[:, None]
        offset = tl.load(group_offset + of_group, mask=are_columns, other=0).to(tl.int32)[:, None]
        begin = group * 2 * HALF
        total = _add_half(total, x, pair & 15, scale, offset, rows, begin, num_tokens, size_in, HALF)
        total = _add_half(total, x, pair >> 4, scale, offset, rows, begin + HALF, num_tokens, size_in, HALF)
    store_scaled(
        total, x_scale, weight_scale, bias, out, rows, columns, num_tokens, size_out, BIASED
    )  # fmt: skip


def linear_int4(
    x: Int8Rows, weight: Int4Weight, bias: torch.Tensor | None = None, tile: Tile | None = None
) -> torch.Tensor:
    """See `linear_int8`: the same numbers, of the same integers."""
    (num_tokens, size_in), size_out = x.values.shape, len(weight.codes)
    if size_in != weight.size_in or size_in > MAX_SIZE_IN:
        raise ValueError(
            f"rows of {size_in} for an int4 weight of {weight.size_in} inputs, at most {MAX_SIZE_IN}"
        )
    if bias is not None and bias.shape != (size_out,):
        raise ValueError(f"bias {list(bias.shape)} must fit an int4 weight of {size_out} outputs")
    parts = (x.values, x.scale, weight.codes, weight.group_scale, weight.group_offset, weight.scale)
    if not all(part.is_contiguous() for part in (*parts, *(() if bias is None else (bias,)))):
        raise ValueError("rows, codes, scales, offsets and bias must be contiguous")
    out = torch.empty(num_tokens, size_out, dtype=weight.dtype, device=x.values.device)
    if out.numel():
        tile = fit_tile(tile or default_tile(num_tokens), 1)
        _linear_int4[(tile.num_programs(num_tokens, size_out),)](
            *parts, weight.scale if bias is None else bias, out, num_tokens, size_in, size_out,
            weight.group_scale.shape[1],
            BIASED=bias is not None, ROWS=tile.rows, COLUMNS=tile.columns, HALF=GROUP // 2,
            GROUP_TILES=GROUP_TILES, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out
