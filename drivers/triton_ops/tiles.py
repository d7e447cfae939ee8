"""Shapes of the tiles that products are computed in: they decide what a product costs, never what it is.

Every tile sums over the inputs in the same steps, from the first on, with one accumulator. So its rows and
columns, its warps, and how many steps ahead it loads are free wherever they were seen to give the same bits.

What is wanted of them (an H100: 132 multiprocessors, 3.3 to 4.8 TB/s, 0.6 us until a load arrives):

- Few rows: reading weights is all there is to do. 4.8 TB/s for 0.6 us are 2.9 MB on their way at any time. An
  output of 4,096 in columns of 32 has 128 programs; each needs 23 KB, which are 6 steps ahead of 4 KiB.
- Many rows: a step of a tile of r rows and c columns loads 128 (r + c) bytes for 128 r c operations. At 780
  TFLOP/s 128 x 128 asks the cache for 12 TB/s in all, 128 x 256 for 9: the wide one, where there are rows
  enough for every multiprocessor to have two.
"""

from __future__ import annotations

import triton
import triton.language as tl
from attrs import evolve, frozen

__all__ = ["HEIGHTS", "KINDS", "STEP_BYTES", "Tile", "default_tile", "fit_tile", "tile_at"]

STEP_BYTES = 128  # of a row, in one step; a constant, because it is part of the order of summation
SHARED_BYTES = 99 << 10  # that any GPU has for a program
NUM_PROGRAMS = 264  # two for each multiprocessor of an H100
GROUP_TILES = 8  # of rows, that run side by side: they read the same weights


@frozen
class Tile:
    """One shape."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int  # steps in shared memory: all but one of them are on their way
    min_programs: int = 1  # with fewer, another kind is better

    def num_programs(self, num_rows: int, num_columns: int) -> int:
        """Tiles of a product."""
        return -(-num_rows // self.rows) * -(-num_columns // self.columns)

    def fits(self, num_rows: int, num_columns: int) -> bool:
        """Whether a product fills more than half of its height, and enough of a device."""
        return 2 * num_rows > self.rows and self.num_programs(num_rows, num_columns) >= self.min_programs


# by kind, from few rows to many: the one that is taken unless it was measured, then others to measure. A few:
# each takes seconds to compile, once on a machine
KINDS = (
    (Tile(16, 32, 4, 8), Tile(16, 16, 4, 8), Tile(16, 64, 4, 8)),
    (Tile(64, 64, 4, 5), Tile(64, 32, 4, 6), Tile(64, 128, 4, 4)),
    (Tile(128, 128, 8, 3), Tile(128, 128, 4, 3)),
    (Tile(128, 256, 8, 3, NUM_PROGRAMS), Tile(128, 256, 8, 4, NUM_PROGRAMS)),
)
HEIGHTS = tuple(kind[0].rows for kind in KINDS[:3])


def default_tile(num_rows: int) -> Tile:
    """What so many rows take, unless something was measured."""
    return next((kind[0] for kind in KINDS[2::-1] if kind[0].fits(num_rows, 1)), KINDS[0][0])


def fit_tile(tile: Tile, item_bytes: float, shared_bytes: int = SHARED_BYTES) -> Tile:
    """The same with as many stages as there is shared memory for, one at least.

    Args:
        tile: any.
        item_bytes: of a number of the operands; a step is STEP_BYTES of numbers of 2 bytes, or of 1.
        shared_bytes: that a program of the device can have.
    """
    step = (tile.rows + tile.columns) * STEP_BYTES * max(1.0, item_bytes / 2)
    return evolve(tile, num_stages=max(1, min(tile.num_stages, int(shared_bytes // step))))


@triton.jit
def tile_at(
    program, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP_TILES: tl.constexpr
):  # fmt: skip
    """Rows and columns of a program's tile. Programs with the same columns come one behind the other."""
    num_row_tiles, num_column_tiles = tl.cdiv(num_rows, ROWS), tl.cdiv(num_columns, COLUMNS)
    group_size = GROUP_TILES * num_column_tiles
    first = program // group_size * GROUP_TILES
    height = tl.minimum(num_row_tiles - first, GROUP_TILES)
    in_group = program % group_size
    row, column = first + in_group % height, in_group // height
    rows = (row * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    return rows, (column * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
