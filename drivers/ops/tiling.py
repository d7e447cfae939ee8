"""Fixed-shape matrix products whose rows do not depend on each other, verified before they are relied on.

A library GEMM picks its kernel, and so its order of summation, by the shape of the problem: the same row
may come out with different last bits in a product of 3 rows and of 300. Here every product runs in tiles of
a few fixed row counts, and a tile size is used only when it was seen, on this machine and with this very
weight, to give every row the bits that the base tile gives it, at every row position.
"""

from __future__ import annotations

import torch

__all__ = ["BASE_TILE", "TILES", "TiledLinear", "bmm_rows", "fold_sum", "verified_bmm_rows"]

BASE_TILE = 16
TILES = (4, 16, 64)  # rows; larger ones serve prefill, the smallest a lone decode
PROBE_ROWS = 64
BMM_PROBE_BATCH = 24


def fold_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum the last dimension by folding it in half: [..., n] -> [..., 1].

    Only elementwise additions, so the order is a function of n alone on every device and thread count;
    `torch.sum` promises nothing of the kind.
    """
    while (n := x.shape[-1]) > 1:
        half = n // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        # an odd element out waits at the end for the next round
        x = torch.cat((folded, x[..., 2 * half :]), dim=-1) if n % 2 else folded
    return x


def _needs_upcast(weight: torch.Tensor) -> bool:
    # Few CPUs multiply fp16; torch then falls back to a scalar loop, ten times slower than widening first.
    return weight.device.type == "cpu" and weight.dtype == torch.float16


def _tile_product(x: torch.Tensor, weight: torch.Tensor, tile: int) -> torch.Tensor:
    """Multiply [n * tile, in] by weight.T, tile by tile."""
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    transposed = weight.t()
    for row in range(0, x.shape[0], tile):
        torch.mm(x[row : row + tile], transposed, out=out[row : row + tile])
    return out


class TiledLinear:
    """x @ weight.T in verified tiles; remembers what it verified for each shape and thread count."""

    def __init__(self) -> None:
        self._tiles: dict[tuple[object, ...], tuple[int, ...]] = {}

    def tiles(self, weight: torch.Tensor) -> tuple[int, ...]:
        """The tile sizes in use for weights like this one, ascending; verifies on first sight.

        (1,) when not even the base tile treats its rows alike: then each row is multiplied by itself.
        """
        key = (weight.shape, weight.dtype, weight.device, torch.get_num_threads())
        if (tiles := self._tiles.get(key)) is None:
            tiles = self._tiles[key] = _verify_linear(weight)
        return tiles

    def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in] by [out, in] -> [num_tokens, out], each row independent of the others."""
        tiles = self.tiles(weight)
        plan: list[int] = []
        rest = x.shape[0]
        for tile in reversed(tiles):
            plan += [tile] * (rest // tile)
            rest %= tile
        if rest:
            plan.append(tiles[0])  # padded
        num_rows = sum(plan)
        dtype = torch.float32 if _needs_upcast(weight) else weight.dtype
        if num_rows == x.shape[0]:
            padded = x.to(dtype).contiguous()
        else:
            padded = torch.zeros((num_rows, x.shape[1]), dtype=dtype, device=x.device)
            padded[: x.shape[0]] = x
        transposed = weight.to(dtype).t()
        out = torch.empty((num_rows, weight.shape[0]), dtype=dtype, device=x.device)
        row = 0
        for tile in plan:
            torch.mm(padded[row : row + tile], transposed, out=out[row : row + tile])
            row += tile
        return out[: x.shape[0]].to(weight.dtype)


def _verify_linear(weight: torch.Tensor) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(weight.shape[0] * 1_000_003 + weight.shape[1])
    rows = torch.randn((PROBE_ROWS, weight.shape[1]), generator=generator)
    order = torch.randperm(PROBE_ROWS, generator=generator).to(weight.device)
    if _needs_upcast(weight):
        weight = weight.float()
    rows = rows.to(weight.device, weight.dtype)
    expected = _tile_product(rows, weight, BASE_TILE)

    def agrees(tile: int) -> bool:
        shuffled = _tile_product(rows[order].contiguous(), weight, tile)
        return torch.equal(shuffled, expected[order]) and torch.equal(
            _tile_product(rows, weight, tile), expected
        )

    if not agrees(BASE_TILE):
        return (1,)
    return tuple(tile for tile in TILES if tile == BASE_TILE or agrees(tile))


def bmm_rows(a: torch.Tensor, b: torch.Tensor, verified: bool) -> torch.Tensor:
    """[n, m, k] by [n, k, p] -> [n, m, p], in fp32; without a verified `bmm`, by products folded in order."""
    if verified:
        return torch.bmm(a, b)
    return torch.cat(
        [fold_sum(a[:, i, None, :] * b.transpose(1, 2)).transpose(1, 2) for i in range(a.shape[1])], 1
    )


def verified_bmm_rows(
    depth: int, width: int, candidates: tuple[int, ...], device: torch.device
) -> tuple[int, ...]:
    """Which row counts of a batched fp32 product [n, rows, depth] x [n, depth, width] treat rows alike.

    Returns those of `candidates` (ascending; each divides the next) for which every row of every batch entry
    has the bits that the first candidate gives it, alone or among others, for a right-hand side stored either
    way round. Empty when the first candidate itself does not.
    """
    generator = torch.Generator().manual_seed(depth * 1_000_003 + width)
    num_rows = candidates[-1]
    a = torch.randn((BMM_PROBE_BATCH, num_rows, depth), generator=generator).to(device)
    b = torch.randn((BMM_PROBE_BATCH, depth, width), generator=generator).to(device)
    order = torch.randperm(num_rows, generator=generator).to(device)

    def product(rows: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        parts = [torch.bmm(a[:, i : i + rows].contiguous(), b) for i in range(0, num_rows, rows)]
        return torch.cat(parts, dim=1)

    def agrees(rows: int, b: torch.Tensor, expected: torch.Tensor) -> bool:
        alone = torch.cat([product(rows, a[i : i + 1], b[i : i + 1]) for i in range(BMM_PROBE_BATCH)])
        shuffled = product(rows, a[:, order], b)
        return (
            torch.equal(product(rows, a, b), expected)
            and torch.equal(alone, expected)
            and torch.equal(shuffled, expected[:, order])
        )

    layouts = (b, b.transpose(1, 2).contiguous().transpose(1, 2))
    expected = [product(candidates[0], a, layout) for layout in layouts]
    passed: list[int] = []
    for rows in candidates:
        if not all(agrees(rows, layout, good) for layout, good in zip(layouts, expected, strict=True)):
            break
        passed.append(rows)
    return tuple(passed)
