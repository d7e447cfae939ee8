"""The product in fixed tiles, in triton, against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_device import DEVICE, draw

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

import triton
import triton.language as tl

from drivers.ops.reference import ReferenceOps
from drivers.triton_ops import linear as linear_module
from drivers.triton_ops.linear import BASE, TritonLinear, linear, reference_linear
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.tiles import HEIGHTS, KINDS, NUM_PROGRAMS, Tile, default_tile, fit_tile, tile_at
from drivers.triton_ops.tuner import Tuner

TILES = [tile for kind in KINDS for tile in kind]
TOLERANCE = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@settings(max_examples=10)
@given(
    tokens=st.integers(1, 19),
    size_in=st.one_of(st.integers(1, 131), st.sampled_from([64, 128])),
    size_out=st.one_of(st.integers(1, 67), st.sampled_from([64, 128])),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    has_bias=st.booleans(),
    tile=st.sampled_from(TILES),
    seed=st.integers(0, 99),
)
def test_product_is_the_references(
    tokens: int, size_in: int, size_out: int, dtype: torch.dtype, has_bias: bool, tile: Tile, seed: int
) -> None:
    """Ragged in every dimension; a row alone has the bits that it has in company."""
    x = draw(tokens, size_in, dtype=dtype, seed=seed)
    weight = draw(size_out, size_in, dtype=dtype, seed=seed + 1)
    bias = draw(size_out, dtype=dtype, seed=seed + 2) if has_bias else None
    out = linear(x, weight, bias, tile)
    limit = 2 * TOLERANCE[dtype]
    torch.testing.assert_close(out, reference_linear(x, weight, bias), rtol=limit, atol=limit)
    assert torch.equal(linear(x[-1:].clone(), weight, bias, tile), out[-1:])


@triton.jit
def _count(
    counts, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP_TILES: tl.constexpr
):
    rows, columns = tile_at(tl.program_id(0), num_rows, num_columns, ROWS, COLUMNS, GROUP_TILES)
    real = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    at = counts + rows[:, None] * num_columns + columns[None, :]
    tl.store(at, tl.load(at, mask=real) + 1, mask=real)


@settings(max_examples=5)
@given(
    num_rows=st.integers(1, 20),
    num_columns=st.integers(1, 20),
    rows=st.sampled_from([1, 2, 4]),
    columns=st.sampled_from([1, 2, 8]),
)
def test_programs_have_every_tile_once(num_rows: int, num_columns: int, rows: int, columns: int) -> None:
    """Whatever the order of programs: each output is one program's."""
    tile = Tile(rows, columns, 1, 2)
    counts = torch.zeros(num_rows, num_columns, dtype=torch.int32, device=DEVICE)
    grid = (tile.num_programs(num_rows, num_columns),)
    _count[grid](counts, num_rows, num_columns, ROWS=rows, COLUMNS=columns, GROUP_TILES=3)
    assert bool((counts == 1).all())


def test_tiles_that_do_not_agree_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that rounds differently is left out; of the others the number of rows decides."""
    weight, x = draw(40, 64, dtype=torch.float16), draw(70, 64, dtype=torch.float16, seed=1)
    used: list[Tile] = []
    true_linear = linear

    def uneven(x, weight, bias=None, tile=TILES[0], *, bad: int):
        used.append(tile)
        out = true_linear(x, weight, bias, tile)
        return out + 1 if tile.rows == bad else out

    for bad in (16, 64, 0):
        monkeypatch.setattr(
            linear_module, "linear", lambda *args, bad=bad, **kwargs: uneven(*args, **kwargs, bad=bad)
        )
        products = TritonLinear()
        agreeing = products.tiles(weight)
        assert bad not in [tile.rows for tile in agreeing]
        assert agreeing[-1].rows == BASE.rows
        used.clear()
        whole = products(x, weight, None)
        fitting = [tile for tile in agreeing if tile.rows < 2 * len(x)]
        assert used == [fitting[-1] if fitting else agreeing[0]]
        assert torch.equal(products(x[:1].clone(), weight, None), whole[:1])


def test_the_fastest_of_those_that_agree_is_taken_and_remembered(tmp_path: Path) -> None:
    """Each kind is measured once for a weight; the next one takes what is in the file: the same bits."""
    weight, x = draw(72, 64), draw(33, 64, seed=1)
    untuned = TritonLinear()
    expected = untuned(x, weight, None)
    measured: list[float] = []

    def measure(call: Callable[[], object]) -> float:
        call()
        measured.append(-len(measured))  # each is faster than the one before
        return measured[-1]

    path = tmp_path / "folder" / "device.json"
    tuned = TritonLinear(Tuner(path, measure))
    tiles = tuned.tiles(weight)
    assert len(tiles) == len(untuned.tiles(weight))
    assert len(measured) > len(tiles)
    for tile, first in zip(tiles, untuned.tiles(weight), strict=True):
        assert tile.rows == first.rows
    assert tiles != untuned.tiles(weight)
    assert torch.equal(tuned(x, weight, None), expected)
    later = Tuner(path, lambda call: pytest.fail("this was measured before"))
    assert TritonLinear(later).tiles(weight) == tiles
    path.write_text("{")
    again = TritonLinear(Tuner(path, measure))
    assert [tile.rows for tile in again.tiles(weight)] == [tile.rows for tile in tiles]


def test_candidates_have_one_result() -> None:
    """Every shape of a tile sums in one order; in whole numbers, whatever is left out or twice shows."""
    weight = draw(130, 192).mul_(8).round_()
    x = draw(40, 192, seed=1).mul_(8).round_()
    expected = x @ weight.T
    for tile in TILES:
        assert torch.equal(linear(x, weight, None, tile), expected), tile


def test_tiles_suit_rows_and_shared_memory() -> None:
    """Low tiles for few rows, the wide one where it fills a device; stages as far as there is memory."""
    assert [default_tile(rows).rows for rows in (1, 16, 32, 33, 64, 65, 4096)] == [
        16,
        16,
        16,
        64,
        64,
        128,
        128,
    ]
    wide = KINDS[-1][0]
    assert not wide.fits(512, 4096)
    assert wide.fits(4096, 4096) == (wide.num_programs(4096, 4096) >= NUM_PROGRAMS)
    assert wide.fits(8192, 4096)
    for tile in TILES:
        for item_bytes, shared in ((1, 99 << 10), (2, 163 << 10), (2, 227 << 10), (4, 227 << 10)):
            fitted = fit_tile(tile, item_bytes, shared)
            step = (tile.rows + tile.columns) * 128 * max(1, item_bytes // 2)
            assert fitted.num_stages == 1 or fitted.num_stages * step <= shared
            assert fitted.num_stages <= tile.num_stages
    assert HEIGHTS == (16, 64, 128)


@pytest.mark.parametrize("use_library", [False, True])
def test_either_product_is_row_invariant(use_library: bool) -> None:
    """A row has one value, alone and in company, by the library's products or by our own."""
    ops, reference = TritonOps(use_library=use_library), ReferenceOps()
    weight, x, bias = draw(48, 64), draw(37, 64, seed=1), draw(48, seed=2)
    ops.prepare_linear(weight)
    assert not (ops.uses_library(weight) and not use_library)
    out = ops.linear(x, weight, bias)
    torch.testing.assert_close(out, reference.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    for row in (0, 15, 16, 36):
        assert torch.equal(ops.linear(x[row : row + 1].clone(), weight, bias), out[row : row + 1])


def test_a_product_that_does_not_fit_is_refused() -> None:
    """The error shows the shapes."""
    with pytest.raises(ValueError, match=r"x \[1, 3\] and weight \[2, 4\]"):
        linear(torch.zeros(1, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"bias \[3\]"):
        linear(torch.zeros(1, 4), torch.zeros(2, 4), torch.zeros(3))
