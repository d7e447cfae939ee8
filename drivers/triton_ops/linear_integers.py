"""Products of integers in tiles that suit the number of rows: any gives the same bits, so time decides."""

from __future__ import annotations

import torch

from drivers.ops.int8 import Int4Weight, Int8Rows, Int8Weight
from drivers.triton_ops.linear_int4 import linear_int4
from drivers.triton_ops.linear_int8 import linear_int8
from drivers.triton_ops.tiles import HEIGHTS, KINDS, Tile, fit_tile
from drivers.triton_ops.tuner import Tuner

__all__ = ["LinearIntegers", "list_tiles"]

OUTPUTS_PER_WARP = 2048  # of 4 bits at most: more of them spill registers on Ampere


class LinearIntegers:
    """`linear_int8` and `linear_int4`, in tiles of a few heights.

    Args:
        tuner: which of several tiles of a height is the fastest; None: the first of each.
    """

    def __init__(self, tuner: Tuner | None = None) -> None:
        self._tuner = tuner
        self._tiles: dict[tuple[object, ...], tuple[Tile, ...]] = {}

    def tiles(self, weight: Int8Weight | Int4Weight) -> tuple[Tile, ...]:
        """Those in use for weights like this one, from few rows to many; measures on first sight."""
        size_out, size_in = _size(weight)
        key = (type(weight), size_out, size_in, weight.dtype, weight.scale.device)
        if (tiles := self._tiles.get(key)) is None:
            listed = list_tiles(is_int4=isinstance(weight, Int4Weight))
            tiles = self._tiles[key] = tuple(self._choose(weight, kind) for kind in listed)
        return tiles

    def __call__(
        self, x: Int8Rows, weight: Int8Weight | Int4Weight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See linear_int8."""
        tiles, num_tokens = self.tiles(weight), len(x.values)
        fitting = [tile for tile in tiles if tile.fits(num_tokens, len(weight.scale))]
        return _multiply(x, weight, bias, fitting[-1] if fitting else tiles[0])

    def _choose(self, weight: Int8Weight | Int4Weight, tiles: tuple[Tile, ...]) -> Tile:
        if self._tuner is None:
            return tiles[0]
        (size_out, size_in), device = _size(weight), weight.scale.device
        num_rows = tiles[0].rows
        values = torch.randint(-127, 128, (num_rows, size_in), dtype=torch.int8, device=device)
        x = Int8Rows(values, torch.ones(num_rows, device=device))
        name = f"{type(weight).__name__} [{size_out}, {size_in}] {weight.dtype} rows {num_rows}"
        return self._tuner.choose(name, tiles, lambda tile: _multiply(x, weight, None, tile))


def list_tiles(*, is_int4: bool) -> list[tuple[Tile, ...]]:
    """For each height the tile that is taken unless it was measured, then others to measure."""
    most = OUTPUTS_PER_WARP if is_int4 else None
    return [
        tuple(
            fit_tile(tile, 1)
            for tile in kind
            if most is None or tile.rows * tile.columns <= most * tile.num_warps
        )
        for kind in KINDS[: len(HEIGHTS)]
    ]


def _size(weight: Int8Weight | Int4Weight) -> tuple[int, int]:
    """Outputs and inputs."""
    size_in = weight.size_in if isinstance(weight, Int4Weight) else weight.values.shape[1]
    return len(weight.scale), size_in


def _multiply(
    x: Int8Rows, weight: Int8Weight | Int4Weight, bias: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    if isinstance(weight, Int4Weight):
        return linear_int4(x, weight, bias, tile)
    return linear_int8(x, weight, bias, tile)
