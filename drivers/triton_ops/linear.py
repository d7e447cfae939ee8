"""x @ weight.T in tiles of fixed shapes, for where a library's choice of kernel depends on the batch.

Every tile sums over the inner dimension in steps of STEP from 0 on, whatever the number of rows, so a row's
bits are its own. High tiles serve prompts; `TritonLinear` also uses those others that it saw, on this device
and with this weight, to give every row the bits that the base gives it, and of those the ones that it found
the fastest. A low tile may go to another matrix instruction: 16 rows are `mma` on Hopper, more are `wgmma`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.tiling import probe_rows
from drivers.triton_ops.operands import operand_format
from drivers.triton_ops.tiles import GROUP_TILES, KINDS, STEP_BYTES, Tile, fit_tile, tile_at
from drivers.triton_ops.tuner import Tuner

__all__ = ["BASE", "TritonLinear", "linear", "reference_linear"]

STEP = STEP_BYTES // 2  # of the inner dimension; a constant, because it is part of the order of summation
BASE = KINDS[2][0]  # whose bits count
MAX_TUNED_ROWS = 8192  # tiles for more than that are measured with as many


# the compiler must not make other code for another number of tokens
@triton.jit(do_not_specialize=["num_tokens"])
def _linear(
    x, weight, bias, out, num_tokens, size_in, size_out,
    BIASED: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    GROUP_TILES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    rows, columns = tile_at(tl.program_id(0), num_tokens, size_out, ROWS, COLUMNS, GROUP_TILES)
    are_rows, are_columns = rows < num_tokens, columns < size_out
    step = tl.arange(0, STEP)
    left_at = x + rows[:, None] * size_in + step[None, :]
    right_at = weight + columns[:, None] * size_in + step[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, size_in, STEP):
        if EVEN:
            left = tl.load(left_at, mask=are_rows[:, None], other=0.0)
            right = tl.load(right_at)
        else:
            inside = (begin + step < size_in)[None, :]
            left = tl.load(left_at, mask=are_rows[:, None] & inside, other=0.0)
            right = tl.load(right_at, mask=are_columns[:, None] & inside, other=0.0)
        total = tl.dot(left.to(OPERAND), tl.trans(right.to(OPERAND)), total, input_precision="ieee")
        left_at += STEP
        right_at += STEP
    if BIASED:
        # rounded once before it, as a product and a sum are
        total = total.to(out.dtype.element_ty).to(tl.float32)
        total += tl.load(bias + columns, mask=are_columns, other=0.0).to(tl.float32)[None, :]
    real = are_rows[:, None] & are_columns[None, :]
    tl.store(out + rows[:, None] * size_out + columns[None, :], total, mask=real)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, tile: Tile = KINDS[0][0]
) -> torch.Tensor:
    """[num_tokens, in] @ [out, in].T + [out] -> [num_tokens, out] in the dtype of x; summed in fp32.

    Args:
        x: contiguous.
        weight: contiguous.
        bias: contiguous, or None.
        tile: of any shape.

    Raises:
        ValueError: the shapes do not fit, or a tensor is not contiguous.
    """
    if x.shape[1] != weight.shape[1] or not x.is_contiguous() or not weight.is_contiguous():
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} must fit and be contiguous")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_contiguous()):
        raise ValueError(f"bias {list(bias.shape)} must fit weight {list(weight.shape)} and be contiguous")
    out = x.new_empty(x.shape[0], weight.shape[0])
    if out.numel():
        size_out, size_in = weight.shape
        _linear[(tile.num_programs(*out.shape),)](
            x, weight, weight if bias is None else bias, out, x.shape[0], size_in, size_out,
            BIASED=bias is not None, EVEN=size_in % STEP == 0 and size_out % tile.columns == 0,
            ROWS=tile.rows, COLUMNS=tile.columns, STEP=STEP, GROUP_TILES=GROUP_TILES,
            OPERAND=operand_format(weight.dtype), num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out


class TritonLinear:
    """`linear` in the tiles that suit the number of rows, of those that agree with the highest.

    Args:
        tuner: which of several tiles for as many rows is the fastest; None: the first, of each kind.
        shared_bytes: that a program of the device can have; None: as much as any has.
    """

    def __init__(self, tuner: Tuner | None = None, shared_bytes: int | None = None) -> None:
        self._tuner = tuner
        self._shared = {} if shared_bytes is None else {"shared_bytes": shared_bytes}
        self._tiles: dict[tuple[object, ...], tuple[Tile, ...]] = {}

    def tiles(self, weight: torch.Tensor) -> tuple[Tile, ...]:
        """Those in use for weights like this one, from few rows to many; verifies on first sight."""
        key = (weight.shape, weight.dtype, weight.device)
        if (tiles := self._tiles.get(key)) is None:
            tiles = self._tiles[key] = self._choose(weight)
        return tiles

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See linear."""
        tiles = self.tiles(weight)
        fitting = [tile for tile in tiles if tile.fits(x.shape[0], weight.shape[0])]
        return linear(x, weight, bias, fitting[-1] if fitting else tiles[0])

    def _choose(self, weight: torch.Tensor) -> tuple[Tile, ...]:
        """A tile of each kind that has one with the bits of the base."""
        rows = probe_rows(weight, BASE.rows)
        expected = linear(rows, weight, None, self._fit(BASE, weight))
        chosen = []
        for kind in KINDS:
            agreeing: list[Tile] = []
            for tile in dict.fromkeys(self._fit(tile, weight) for tile in kind):
                if self._tuner is None and agreeing:
                    break
                if BASE.columns < tile.columns > weight.shape[0]:
                    continue  # nothing but padding would be gained
                if torch.equal(linear(rows, weight, None, tile), expected):
                    agreeing.append(tile)
            if agreeing:
                chosen.append(
                    agreeing[0] if self._tuner is None else self._tune(self._tuner, agreeing, weight)
                )
        return tuple(chosen)

    def _fit(self, tile: Tile, weight: torch.Tensor) -> Tile:
        return fit_tile(tile, weight.dtype.itemsize, **self._shared)

    def _tune(self, tuner: Tuner, tiles: list[Tile], weight: torch.Tensor) -> Tile:
        """The fastest for as many rows as make it sensible."""
        num_rows = tiles[0].rows
        while not tiles[0].fits(num_rows, weight.shape[0]) and num_rows < MAX_TUNED_ROWS:
            num_rows *= 2
        x = torch.zeros(num_rows, weight.shape[1], dtype=weight.dtype, device=weight.device).normal_()
        name = f"linear {list(weight.shape)} {weight.dtype} rows {num_rows}"
        return tuner.choose(name, tiles, lambda tile: linear(x, weight, None, tile))


def reference_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same in plain torch."""
    out = (x.float() @ weight.float().T).to(x.dtype)
    return out if bias is None else out + bias
