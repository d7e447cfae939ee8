"""A step's attention as lists for programs: lone tokens, and tiles of chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
from attrs import frozen

from drivers.ops.batch import Span
from drivers.ops.interface import AttentionShape
from drivers.ops.transfer import send

__all__ = ["HIGH_TILE_ROWS", "TILE_ROWS", "TritonPlan", "plan_attention", "plan_singles"]

TILE_ROWS = 64  # queries of a program; a constant, so that a product has one shape
HIGH_TILE_ROWS = 128  # of a prompt, where those were seen to have the same bits: keys are read half as often


@frozen(eq=False)
class TritonPlan:
    """What is attended to. All tensors are int64 on the model's device."""

    shape: AttentionShape
    singles: (
        torch.Tensor
    )  # [3, num_singles]: page of position 0; the token's position, -1: padding; its place
    tiles: torch.Tensor  # [4, num_tiles]: page of position 0; first position, end; place of the first token
    max_length: int  # no lone token sees more keys. It sets the size of a grid, and changes no bit
    tile_rows: int = TILE_ROWS  # queries of a tile

    @property
    def packed_heads(self) -> int:
        """Query heads of a key-value head, with padding to a power of 2."""
        return int(triton.next_power_of_2(self.shape.group_size))

    @property
    def tile_length(self) -> int:
        """Positions of a tile; tiles begin at multiples of it."""
        return max(1, self.tile_rows // self.packed_heads)


def plan_singles(shape: AttentionShape, singles: torch.Tensor, max_length: int) -> TritonPlan:
    """A plan of lone tokens only; see TritonPlan."""
    return TritonPlan(shape, singles, singles.new_empty((4, 0)), max_length)


def plan_attention(
    spans: Sequence[Span], shape: AttentionShape, device: torch.device, tile_rows: int = TILE_ROWS
) -> TritonPlan:
    """Cut chunks into tiles of so many queries; chunks of one token are lone tokens.

    Raises:
        ValueError: the pages of a row are not consecutive.
    """
    nothing = torch.empty((4, 0), dtype=torch.int64)
    length = TritonPlan(shape, nothing, nothing, 1, tile_rows).tile_length
    singles: list[tuple[int, int, int]] = []
    tiles: list[tuple[int, int, int, int]] = []
    for span in spans:
        first_page = span.pages[0]
        if span.pages != tuple(range(first_page, first_page + len(span.pages))):
            raise ValueError(f"pages {span.pages} of a row are not consecutive")
        if span.num_tokens == 1:
            singles.append((first_page, span.start, span.offset))
            continue
        start = span.start
        while start < span.end:
            end = min(span.end, (start // length + 1) * length)
            tiles.append((first_page, start, end, span.offset + start - span.start))
            start = end
    tiles.sort(key=lambda tile: -tile[2])  # those that take longest begin first

    def tensor(rows: Sequence[tuple[int, ...]], width: int) -> torch.Tensor:
        table = np.array(rows, dtype=np.int64).reshape(-1, width).T
        return send(torch.from_numpy(np.ascontiguousarray(table)), device)

    return TritonPlan(
        shape,
        tensor(singles, 3),
        tensor(tiles, 4),
        max((position for _, position, _ in singles), default=0) + 1,
        tile_rows,
    )
