"""Numbers in 8 bits in triton: integers and scales are those of the processor's kernels, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_device import DEVICE, draw

from drivers.model.int8_loader import unpack_linear
from drivers.ops.int8 import Int4Weight, Int8Rows, Int8Weight
from drivers.ops.int8 import linear_int8 as reference_linear
from drivers.ops.int8 import round_rows as reference_rows
from drivers.ops.reference import ReferenceOps
from native.pack import WeightFormat, pack_weight
from native.quantise import quantise_rows

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops.linear_int4 import linear_int4
from drivers.triton_ops.linear_int8 import linear_int8
from drivers.triton_ops.linear_integers import LinearIntegers, list_tiles
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.rms_norm import add_rms_norm, add_rms_norm_int8, rms_norm_int8
from drivers.triton_ops.rounding import round_rows
from drivers.triton_ops.silu_mul import silu_mul_int8
from drivers.triton_ops.tiles import HEIGHTS, KINDS
from drivers.triton_ops.tuner import Tuner

FLOATS = sorted((torch.float32, torch.float16, torch.bfloat16), key=str)
DTYPES = st.sampled_from(FLOATS)
TILES = [tile for kind in KINDS for tile in kind]
few = settings(max_examples=10)


def integers(num_rows: int, size: int, seed: int) -> torch.Tensor:
    """Whole numbers of 8 bits, -127 to 127."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (num_rows, size), generator=generator).to(torch.int8).to(DEVICE)


@few
@given(
    rows=st.integers(1, 4),
    size=st.sampled_from([1, 3, 64, 131, 2049]),
    exponent=st.integers(-110, 120),
    num_equal=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_rows_are_rounded_as_the_processor_does(rows, size, exponent, num_equal, seed) -> None:
    """Integers and scales equal those of native/cpu/quantise.h to the bit; halves go to even, zeros stay."""
    x = draw(rows, size, seed=seed) * 2.0**exponent
    x[:num_equal] = float(x[0, 0])
    x[-1] = torch.arange(size) % 4 * 0.5 + 0.5 if exponent % 2 else 0.0
    x[-1, 0] = 127.0 if exponent % 2 else 0.0  # so that halves are halves
    wanted, got = quantise_rows(x.cpu().numpy()), round_rows(x)
    np.testing.assert_array_equal(got.values.cpu().numpy(), wanted.values[:, :size])
    np.testing.assert_array_equal(got.scale.cpu().numpy(), wanted.scale)
    values, scale = reference_rows(x)
    assert torch.equal(values, got.values)
    assert torch.equal(scale, got.scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_pass_unseen(bad: float) -> None:
    """A row with such a number has a scale that is none, and so has no finite product; others have theirs."""
    x = draw(3, 40)
    good = round_rows(x.clone())
    x[1, 7] = bad
    weight = Int8Weight(integers(20, 40, 0), draw(20, seed=1).abs(), torch.float32)
    made = [round_rows(x)]
    if bad != bad:  # the interpreter warns of what an infinity becomes
        made += [rms_norm_int8(x, draw(40, seed=2), 1e-5), silu_mul_int8(x)]
    for rows in made:
        assert rows.scale.isfinite().tolist() == [True, False, True]
    out = linear_int8(round_rows(x), weight)
    assert not out[1].isfinite().any()
    assert torch.equal(out[::2], linear_int8(good, weight)[::2])


@few
@given(
    tokens=st.integers(1, 19),
    size_in=st.integers(1, 150),
    size_out=st.integers(1, 67),
    dtype=DTYPES,
    has_bias=st.booleans(),
    tile=st.sampled_from(TILES),
    seed=st.integers(0, 99),
)
@example(tokens=3, size_in=128, size_out=32, dtype=torch.bfloat16, has_bias=True, tile=TILES[0], seed=0)
def test_products_are_exact(tokens, size_in, size_out, dtype, has_bias, tile, seed) -> None:
    """With scales of 1 the sums are NumPy's in int32; a row's bits are its own, in tiles of any shape."""
    values, weights = integers(tokens, size_in, seed), integers(size_out, size_in, seed + 1)
    ones = Int8Rows(values, torch.ones(tokens, device=DEVICE))
    plain = Int8Weight(weights, torch.ones(size_out, device=DEVICE), torch.float32)
    sums = values.cpu().numpy().astype(np.int32) @ weights.cpu().numpy().astype(np.int32).T
    np.testing.assert_array_equal(linear_int8(ones, plain, None, tile).cpu().numpy(), sums.astype(np.float32))
    rows = Int8Rows(values, draw(tokens, seed=seed).abs() / 100)
    weight = Int8Weight(weights, draw(size_out, seed=seed + 1).abs() / 100, dtype)
    bias = draw(size_out, seed=seed + 2) if has_bias else None
    out = linear_int8(rows, weight, bias, tile)
    limit = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(out, reference_linear(rows, weight, bias), rtol=limit, atol=limit)
    last = Int8Rows(values[-1:].clone(), rows.scale[-1:].clone())
    for other in TILES[::3]:
        assert torch.equal(linear_int8(last, weight, bias, other), out[-1:])


@few
@given(tokens=st.integers(1, 4), size=st.integers(1, 133), dtype=DTYPES, seed=st.integers(0, 99))
def test_fused_norm_is_rounded_once(tokens: int, size: int, dtype: torch.dtype, seed: int) -> None:
    """No number is off by more than a last place of 8 bits; the residual is that of the other norm."""
    x, residual = draw(2, tokens, size, dtype=dtype, seed=seed)
    weight = draw(size, dtype=dtype, seed=seed + 1)
    changed, total = residual.clone(), residual.clone()
    out = add_rms_norm_int8(x, changed, weight, 1e-5)
    add_rms_norm(x, total, weight, 1e-5)
    assert torch.equal(changed, total)
    assert_near(out, ReferenceOps().rms_norm_int8(changed, weight, 1e-5))
    alone = add_rms_norm_int8(x[-1:], residual[-1:].clone(), weight, 1e-5)
    assert torch.equal(alone.values, out.values[-1:])
    assert torch.equal(alone.scale, out.scale[-1:])
    without = rms_norm_int8(changed, weight, 1e-5)
    assert torch.equal(without.values, out.values)


@few
@given(
    tokens=st.integers(1, 3), size=st.sampled_from([1, 7, 4096, 4100]), dtype=DTYPES, seed=st.integers(0, 9)
)
def test_fused_silu_is_rounded_once(tokens: int, size: int, dtype: torch.dtype, seed: int) -> None:
    """Also past the end of a block; a row alone has the bits that it has in company."""
    gate_up = draw(tokens, 2 * size, dtype=dtype, seed=seed)
    out = silu_mul_int8(gate_up)
    assert_near(out, ReferenceOps().silu_mul_int8(gate_up))
    alone = silu_mul_int8(gate_up[-1:].clone())
    assert torch.equal(alone.values, out.values[-1:])
    assert torch.equal(alone.scale, out.scale[-1:])


def assert_near(got: Int8Rows, wanted: Int8Rows) -> None:
    """Scales but for their last bits; integers but where what is rounded lies at a half."""
    torch.testing.assert_close(got.scale, wanted.scale, rtol=1e-5, atol=0.0)
    difference = (got.values.int() - wanted.values.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() <= 0.01 + 1.5 / difference.numel()


@few
@given(
    rows=st.integers(1, 5), size_in=st.integers(1, 90), size_out=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_weights_are_those_of_the_cache(rows: int, size_in: int, size_out: int, seed: int) -> None:
    """What the processor packs is, unpacked, what this rule gives; rows may be rounded before a product."""
    weight = draw(size_out, size_in, seed=seed)
    packed = pack_weight(WeightFormat.W8A8, weight.cpu().numpy())
    values, scale = reference_rows(weight)
    np.testing.assert_array_equal(packed.unpack_int8(), values.cpu().numpy())
    np.testing.assert_array_equal(packed.scale, scale.cpu().numpy())
    x = draw(rows, size_in, seed=seed + 1)
    ops, made = TritonOps(), Int8Weight(values, scale, torch.float32)
    ops.prepare_linear(made)
    assert torch.equal(ops.linear(x, made, None), ops.linear(round_rows(x), made, None))


@few
@given(
    rows=st.integers(1, 17),
    size_in=st.sampled_from([1, 5, 8, 100, 128, 129, 200, 263]),
    size_out=st.integers(1, 70),
    dtype=DTYPES,
    has_bias=st.booleans(),
    tile=st.sampled_from(TILES),
    seed=st.integers(0, 99),
)
@example(rows=3, size_in=263, size_out=65, dtype=torch.float32, has_bias=True, tile=TILES[0], seed=0)
def test_four_bits_give_the_integers_of_eight(rows, size_in, size_out, dtype, has_bias, tile, seed) -> None:
    """Codes are the processor's; sums are NumPy's in int32; products are those of W8A8."""
    numbers = draw(size_out, size_in, seed=seed).cpu()
    packed = pack_weight(WeightFormat.W4A8, numbers.numpy())
    made = unpack_linear(packed, dtype, DEVICE)
    integers_of = packed.unpack_int8()
    np.testing.assert_array_equal(made.values.cpu().numpy(), integers_of)
    x = round_rows(draw(rows, size_in, seed=seed + 1))
    ones = attrs.evolve(made, scale=torch.ones_like(made.scale), dtype=torch.float32)
    sums = x.values.cpu().numpy().astype(np.int32) @ integers_of.astype(np.int32).T
    plain = Int8Rows(x.values, torch.ones_like(x.scale))
    np.testing.assert_array_equal(linear_int4(plain, ones, None, tile).cpu().numpy(), sums.astype(np.float32))
    bias = draw(size_out, seed=seed + 2) if has_bias else None
    wide = Int8Weight(torch.from_numpy(integers_of).to(DEVICE), made.scale, dtype)
    out = linear_int4(x, made, bias, tile)
    assert torch.equal(out, linear_int8(x, wide, bias))
    last = Int8Rows(x.values[-1:].clone(), x.scale[-1:].clone())
    assert torch.equal(linear_int4(last, made, bias), out[-1:])
    if bias is None:
        assert torch.equal(TritonOps().linear(x, made, None), out)


@pytest.mark.parametrize("num_bits", [8, 4])
def test_the_fastest_tiles_are_taken_and_remembered(tmp_path: Path, num_bits: int) -> None:
    """One of each height, for each format by itself: the same bits, and nothing is measured twice."""
    weight: Int8Weight | Int4Weight
    if num_bits == 8:
        weight = Int8Weight(integers(40, 130, 0), draw(40, seed=1).abs(), torch.float32)
    else:
        numbers = draw(40, 130, seed=1).cpu().numpy()
        weight = unpack_linear(pack_weight(WeightFormat.W4A8, numbers), torch.float32, torch.device(DEVICE))
    measured: list[float] = []

    def measure(call: Callable[[], object]) -> float:
        call()
        measured.append(-len(measured))  # each is faster than the one before
        return measured[-1]

    path = tmp_path / "device.json"
    untuned, tuned = LinearIntegers(), LinearIntegers(Tuner(path, measure))
    rows = round_rows(draw(40, 130, seed=2))
    for count in (1, 40):
        some = Int8Rows(rows.values[:count].contiguous(), rows.scale[:count].contiguous())
        assert torch.equal(tuned(some, weight, None), untuned(some, weight, None))
    assert tuple(tile.rows for tile in tuned.tiles(weight)) == HEIGHTS
    assert tuned.tiles(weight) != untuned.tiles(weight)
    listed = list_tiles(is_int4=num_bits == 4)
    assert len(measured) == sum(len(kind) for kind in listed if len(kind) > 1)
    later = LinearIntegers(Tuner(path, lambda call: pytest.fail("this was measured before")))
    assert later.tiles(weight) == tuned.tiles(weight)


def test_what_does_not_fit_is_refused() -> None:
    """The error shows the sizes."""
    weight = Int8Weight(integers(2, 4, 0), torch.ones(2), torch.float32)
    with pytest.raises(ValueError, match="rows of 3 for an int8 weight of 4 inputs"):
        linear_int8(Int8Rows(integers(1, 3, 0), torch.ones(1)), weight)
    with pytest.raises(ValueError, match=r"bias \[3\] must fit an int8 weight of 2 outputs"):
        linear_int8(Int8Rows(integers(1, 4, 0), torch.ones(1)), weight, torch.zeros(3))
    with pytest.raises(ValueError, match=r"x \[4, 1\] must be contiguous"):
        round_rows(torch.zeros(1, 8).T[::2])
