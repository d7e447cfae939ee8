"""Fused norm and SiLU in triton, under its interpreter, against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops.rms_norm import add_rms_norm, reference_add_rms_norm
from drivers.triton_ops.silu_mul import reference_silu_mul, silu_mul

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # two roundings
few = settings(max_examples=12, deadline=None)


def draw(*size: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for the rounding of the number format."""
    limit = TOLERANCE[wanted.dtype]
    torch.testing.assert_close(got, wanted, rtol=limit, atol=limit)


@few
@given(tokens=st.integers(1, 4), size=st.integers(1, 133), dtype=DTYPES, seed=st.integers(0, 99))
def test_norm_is_the_references(tokens: int, size: int, dtype: torch.dtype, seed: int) -> None:
    """Norm and new residual agree; a row alone has the bits that it has in company."""
    x, residual = draw(2, tokens, size, dtype=dtype, seed=seed)
    weight = draw(size, dtype=dtype, seed=seed + 1)
    wanted, total = reference_add_rms_norm(x, residual, weight, 1e-5)
    changed = residual.clone()
    out = add_rms_norm(x, changed, weight, 1e-5)
    assert_near(out, wanted)
    assert_near(changed, total)
    assert torch.equal(add_rms_norm(x[-1:], residual[-1:].clone(), weight, 1e-5), out[-1:])


@few
@given(tokens=st.integers(1, 3), size=st.integers(1, 1100), dtype=DTYPES, seed=st.integers(0, 99))
def test_silu_is_the_references(tokens: int, size: int, dtype: torch.dtype, seed: int) -> None:
    """Also past the end of a block; a row alone has the bits that it has in company."""
    gate_up = draw(tokens, 2 * size, dtype=dtype, seed=seed)
    out = silu_mul(gate_up)
    assert_near(out, reference_silu_mul(gate_up))
    assert torch.equal(silu_mul(gate_up[-1:]), out[-1:])


def test_wrong_shapes_are_refused() -> None:
    """The error shows the shapes."""
    with pytest.raises(ValueError, match=r"gate_up \[1, 3\]"):
        silu_mul(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"weight \[3\]"):
        add_rms_norm(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(3), 1e-5)
