"""Quantised activations equal the rule in quantise.h, bit by bit, in every variant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native.quantise import quantise_rows
from native.variant import usable_variants

VARIANTS = usable_variants()
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


def reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rule in NumPy: integers, scales, sums."""
    largest = np.abs(x).max(1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0)).astype(np.float32)
    q = np.clip(np.rint(x * inverse[:, None]), -127, 127).astype(np.int32)
    return q, largest / np.float32(127), q.sum(1)


@every_variant
@settings(max_examples=150)
@given(
    m=st.integers(1, 5),
    k=st.integers(1, 70) | st.sampled_from([128, 256, 1000]),
    seed=st.integers(0, 2**32 - 1),
    magnitude=st.floats(-30, 30),
)
def test_quantised_rows(variant: int, m: int, k: int, seed: int, magnitude: float) -> None:
    """Integers, scale and sum are those of the reference; the padding is zero."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((m, k)) * 10.0**magnitude).astype(np.float32)
    got = quantise_rows(x, variant)
    q, scale, sums = reference(x)
    assert np.array_equal(got.values[:, :k], q)
    assert np.array_equal(got.scale, scale)
    assert np.array_equal(got.sum, sums)
    assert not got.values[:, k : (k + 7) // 8 * 8].any()


@every_variant
def test_halves_round_to_even(variant: int) -> None:
    """With a largest element of 127 the others are their own integers, and halves go to the even one."""
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5] + [0.5, 1.5] * 40], dtype=np.float32)
    got = quantise_rows(x, variant)
    assert got.values[0, :9].tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -126]
    assert got.values[0, 9:89].tolist() == [0, 2] * 40


@every_variant
def test_rows_without_scale(variant: int) -> None:
    """Zeros give zeros; an infinity or a NaN shows in the scale, wherever it stands, and in no other row."""
    for position in (0, 5, 31, 64, 69):
        x = np.ones((4, 70), dtype=np.float32)
        x[0] = 0
        x[1, position] = np.nan
        x[2, position] = -np.inf
        got = quantise_rows(x, variant)
        assert got.scale[0] == 0
        assert not got.values[0, :70].any()
        assert np.isnan(got.scale[1])
        assert np.isinf(got.scale[2])
        assert got.scale[3] == np.float32(1) / np.float32(127)
        assert np.all(got.values[3, :70] == 127)
