"""Norms, activations and embedding agree with fp64, for every variant and every length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from native._cpu import lib

from native.attention import use_variant
from native.elementwise import embed, rms_norm, rms_norm_int8, silu_mul
from native.quantise import quantise_rows

VARIANTS = [variant for variant in range(lib.LLMOS_NUM_VARIANTS) if variant <= lib.llmos_best_variant()]
LENGTHS = [*range(1, 50), 64, 100, 768, 2048, 4097]


@pytest.fixture(params=VARIANTS, ids=["plain", "avx2", "avx512"][: len(VARIANTS)])
def variant(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every variant that this machine has."""
    assert use_variant(request.param)
    yield request.param
    use_variant(lib.llmos_best_variant())


@pytest.mark.parametrize("length", LENGTHS)
def test_rms_norm(variant: int, length: int) -> None:
    """Rows with a stride, into a new array and in place, within 1e-6; a row alone has the same bits."""
    rng = np.random.default_rng(length)
    wide = rng.standard_normal((5, length + 3)).astype(np.float32)
    x, weight = wide[:, :length], rng.standard_normal(length).astype(np.float32)
    exact = x.astype(np.float64)
    exact = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    out = rms_norm(x, weight, 1e-5)
    np.testing.assert_allclose(out, exact, rtol=1e-6, atol=1e-7)
    assert np.array_equal(rms_norm(x[3:4], weight, 1e-5)[0], out[3])
    behind = wide[:, length:].copy()
    rms_norm(x, weight, 1e-5, out=x)
    assert np.array_equal(x, out)
    assert np.array_equal(wide[:, length:], behind)


@pytest.mark.parametrize("length", LENGTHS)
def test_rms_norm_int8(variant: int, length: int) -> None:
    """Bits are those of the norm followed by rounding, for small, huge, equal and zero rows; padding is 0."""
    rng = np.random.default_rng(length)
    x = rng.standard_normal((6, length + 3)).astype(np.float32)[:, :length]
    x[1:4] *= np.array([[1e-20], [1e15], [0]], dtype=np.float32)
    x[4] = 3.0
    weight = rng.standard_normal(length).astype(np.float32)
    got, expected = rms_norm_int8(x, weight, 1e-5), quantise_rows(rms_norm(x, weight, 1e-5))
    np.testing.assert_array_equal(got.values[:, :length], expected.values[:, :length])
    assert not got.values[:, length:].any()
    np.testing.assert_array_equal(got.scale, expected.scale)
    np.testing.assert_array_equal(got.sum, expected.sum)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("length", [7, 16, 40, 100])
def test_rms_norm_int8_of_what_is_not_finite(variant: int, length: int, bad: float) -> None:
    """Wherever it lies, in the row or in the weight, the scale says so; the row beside it is as it was."""
    rng = np.random.default_rng(length)
    good, weight = rng.standard_normal((2, length)).astype(np.float32), np.ones(length, dtype=np.float32)
    expected = rms_norm_int8(good, weight, 1e-5)
    for at in range(length):
        x, spoilt = good.copy(), weight.copy()
        x[0, at] = spoilt[at] = bad
        got = rms_norm_int8(x, weight, 1e-5)
        assert np.isnan(got.scale[0])
        assert got.scale[1] == expected.scale[1]
        assert np.array_equal(got.values[1], expected.values[1])
        assert np.isnan(rms_norm_int8(good, spoilt, 1e-5).scale).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_silu_mul(variant: int, length: int) -> None:
    """Near fp64 from -80 to 80: the argument of exp is rounded, so its result is off by as much of it."""
    rng = np.random.default_rng(length)
    x = rng.standard_normal((3, 2 * length)).astype(np.float32)
    x[1] *= 30
    x[2] = rng.uniform(-80, 80, 2 * length)
    gate, up = x[:, :length].astype(np.float64), x[:, length:].astype(np.float64)
    out = silu_mul(x)
    exact = gate / (1 + np.exp(-gate)) * up
    assert (abs(out - exact) <= abs(exact) * (1e-6 + 1.2e-7 * abs(gate)) + 1e-30).all()
    assert np.array_equal(silu_mul(x[1:2])[0], out[1])


def test_silu_mul_at_the_ends(variant: int) -> None:
    """Huge gates pass, hugely negative ones vanish, NaN stays."""
    gate = np.array([1e30, -1e4, 0.0, np.nan], dtype=np.float32)
    out = silu_mul(np.concatenate((gate, np.full(4, 2.0, dtype=np.float32)))[None])
    assert out[0, 0] == np.float32(2e30)
    assert abs(out[0, 1]) < 1e-30
    assert out[0, 2] == 0.0
    assert np.isnan(out[0, 3])


@pytest.mark.parametrize("dim", [1, 7, 16, 64, 100])
def test_embed_is_exact(variant: int, dim: int) -> None:
    """Every bit pattern of fp16 and bf16 comes out as NumPy converts it."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    rows = len(bits) // dim
    table = np.ascontiguousarray(bits[: rows * dim].reshape(rows, dim))
    ids = np.random.default_rng(dim).permutation(rows).astype(np.int32)
    half = embed(table, lib.LLMOS_FP16, ids)
    expected = table.view(np.float16)[ids].astype(np.float32)
    np.testing.assert_array_equal(half, expected)
    brain = embed(table, lib.LLMOS_BF16, ids)
    np.testing.assert_array_equal(brain, (table[ids].astype(np.uint32) << 16).view(np.float32))
    single = table.astype(np.float32)
    assert np.array_equal(embed(single, lib.LLMOS_FP32, ids), single[ids])
