"""Fixed-shape matrix products whose rows do not depend on each other, verified before they are relied on.

A library GEMM picks its kernel, and so its order of summation, by the shape of the problem and sometimes by
the alignment of its operands: the same row may come out with different last bits in a product of 3 rows and
of 300, or at an odd address. Here every product runs in tiles of a few fixed row counts, on rows that begin
at multiples of 64 bytes, and a tile size is used only when it was seen, on this machine and with this very
weight, to give every row the bits that the base tile gives it, at every row position.
"""

from __future__ import annotations

import torch

__all__ = [
    "BASE_TILE",
    "TILES",
    "TiledLinear",
    "bmm_in_batches",
    "bmm_rows",
    "fold_sum",
    "probe_rows",
    "verified_bmm_rows",
]

BASE_TILE = 16
TILES = (4, 16, 64)  # rows; larger ones serve prefill, the smallest a lone decode
MIN_PROBE_ROWS = 64
MAX_CANCELLING = 64  # of the rows of a probe: they take a while to make
CANCEL_PLACES = 4  # inputs that make a sum cancel: with 8 bits each, all but its last 32 bits
ALIGNMENT_BYTES = 64
BMM_PROBE_BATCH = 24
BMM_BATCH = 64


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


def _aligned_empty(num_rows: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """An uninitialised [num_rows, size] whose rows all begin at multiples of 64 bytes."""
    step = ALIGNMENT_BYTES // like.dtype.itemsize
    return torch.empty((num_rows, -(-size // step) * step), dtype=like.dtype, device=like.device)[:, :size]


def _is_aligned(x: torch.Tensor) -> bool:
    return (
        x.stride(1) == 1
        and x.data_ptr() % ALIGNMENT_BYTES == 0
        and (x.shape[0] == 1 or x.stride(0) * x.dtype.itemsize % ALIGNMENT_BYTES == 0)
    )


def _tile_product(x: torch.Tensor, weight: torch.Tensor, tiles: list[int]) -> torch.Tensor:
    """Multiply aligned [sum(tiles), in] by weight.T, tile by tile."""
    out = _aligned_empty(x.shape[0], weight.shape[0], x)
    transposed = weight.t()
    row = 0
    for tile in tiles:
        torch.mm(x[row : row + tile], transposed, out=out[row : row + tile])
        row += tile
    return out


class TiledLinear:
    """x @ weight.T in verified tiles; remembers what it verified for each shape and thread count.

    Args:
        candidates: tile sizes to verify, ascending, each a divisor of the next; BASE_TILE is one of them.
    """

    def __init__(self, candidates: tuple[int, ...] = TILES) -> None:
        self._candidates = candidates
        self._tiles: dict[tuple[object, ...], tuple[int, ...]] = {}

    def tiles(self, weight: torch.Tensor) -> tuple[int, ...]:
        """The tile sizes in use for weights like this one, ascending; verifies on first sight.

        (1,) when not even the base tile treats its rows alike: then each row is multiplied by itself.
        """
        key = (weight.shape, weight.dtype, weight.device, torch.get_num_threads())
        if (tiles := self._tiles.get(key)) is None:
            tiles = self._tiles[key] = _verify_linear(weight, self._candidates)
        return tiles

    def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in] by [out, in] -> [num_tokens, out], each row independent of the others."""
        tiles = self.tiles(weight)
        dtype = weight.dtype
        plan: list[int] = []
        rest = x.shape[0]
        for tile in reversed(tiles):
            plan += [tile] * (rest // tile)
            rest %= tile
        if rest:
            plan.append(tiles[0])  # padded
        num_rows = sum(plan)
        if _needs_upcast(weight):
            weight, x = weight.float(), x.float()
        if num_rows != x.shape[0] or not _is_aligned(x):
            padded = _aligned_empty(num_rows, x.shape[1], x)
            padded[: x.shape[0]] = x
            padded[x.shape[0] :] = 0.0
        else:
            padded = x
        return _tile_product(padded, weight, plan)[: x.shape[0]].to(dtype).contiguous()


def probe_rows(weight: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Rows [num_rows, in] that show in what order products with a weight are added; the same every time.

    Rounding to 16 bits hides nearly all differences of order. So in the last rows, half of them or
    MAX_CANCELLING, the sum of one output cancels: what comes out is little else than the errors that the
    order of summation made.
    """
    generator = torch.Generator().manual_seed(weight.shape[0] * 1_000_003 + weight.shape[1])
    rows = torch.randn((num_rows, weight.shape[1]), generator=generator).to(weight.dtype)
    outputs = torch.randint(weight.shape[0], (num_rows,), generator=generator)
    num_cancelling = min(num_rows // 2, MAX_CANCELLING)
    cancelling = range(num_rows - num_cancelling, num_rows)
    wide = weight.detach()[outputs[cancelling.start :].to(weight.device)].cpu().double()
    # each place takes up what the format's few bits left over at the place before
    places = wide.abs().topk(min(CANCEL_PLACES, weight.shape[1]), dim=1).indices
    for index, row in enumerate(cancelling):
        rows[row, places[index]] = 0.0
        for place in places[index].tolist():
            if wide[index, place]:
                rest = rows[row].double() @ wide[index]
                rows[row, place] = -rest / wide[index, place]
    return rows.to(weight.device)


def _verify_linear(weight: torch.Tensor, candidates: tuple[int, ...]) -> tuple[int, ...]:
    if _needs_upcast(weight):
        weight = weight.float()
    num_rows = max(MIN_PROBE_ROWS, candidates[-1])
    rows = _aligned_empty(num_rows, weight.shape[1], weight)
    rows.copy_(probe_rows(weight, num_rows))
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(num_rows)).to(weight.device)
    shuffled = torch.empty_strided(rows.shape, rows.stride(), dtype=rows.dtype, device=rows.device)
    shuffled.copy_(rows[order])

    def product(x: torch.Tensor, tile: int) -> torch.Tensor:
        return _tile_product(x, weight, [tile] * (num_rows // tile))

    expected = product(rows, BASE_TILE)

    def agrees(tile: int) -> bool:
        return torch.equal(product(shuffled, tile), expected[order]) and torch.equal(
            product(rows, tile), expected
        )

    if not agrees(BASE_TILE):
        return (1,)
    return tuple(tile for tile in candidates if tile == BASE_TILE or agrees(tile))


def bmm_rows(a: torch.Tensor, b: torch.Tensor, verified: bool) -> torch.Tensor:
    """[n, m, k] by [n, k, p] -> [n, m, p], in fp32; without a verified `bmm`, by products folded in order."""
    if not verified:
        rows = [fold_sum(a[:, i, None, :] * b.transpose(1, 2)).transpose(1, 2) for i in range(a.shape[1])]
        return torch.cat(rows, dim=1)
    # CPU libraries work through a batch entry by entry; others choose their kernel by how many there are
    return torch.bmm(a, b) if a.device.type == "cpu" else bmm_in_batches(a, b, BMM_BATCH)


def bmm_in_batches(a: torch.Tensor, b: torch.Tensor, batch: int) -> torch.Tensor:
    """`torch.bmm` in calls of exactly `batch` entries each, the last one padded."""
    num_entries = a.shape[0]
    if padding := -num_entries % batch:
        a = torch.cat((a, a.new_zeros((padding, *a.shape[1:]))))
        b = torch.cat((b, b.new_zeros((padding, *b.shape[1:]))))
    parts = [torch.bmm(a[i : i + batch], b[i : i + batch]) for i in range(0, a.shape[0], batch)]
    return torch.cat(parts)[:num_entries]


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
        parts = [bmm_rows(a[:, i : i + rows].clone(), b, True) for i in range(0, num_rows, rows)]
        return torch.cat(parts, dim=1)

    def agrees(rows: int, b: torch.Tensor, expected: torch.Tensor) -> bool:
        # cloned, an entry begins at an aligned address; inside the batch it may not
        alone = torch.cat([product(rows, a[i : i + 1], b[i : i + 1].clone()) for i in range(BMM_PROBE_BATCH)])
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
