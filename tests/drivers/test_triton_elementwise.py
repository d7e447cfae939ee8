"""Norms and SiLU in triton against the reference operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_device import draw

from drivers.ops.reference import ReferenceOps

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops.rms_norm import add_rms_norm, rms_norm
from drivers.triton_ops.silu_mul import silu_mul

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # two roundings
OPS = ReferenceOps()
few = settings(max_examples=12)


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
    changed, total = residual.clone(), residual.clone()
    out, wanted = add_rms_norm(x, changed, weight, 1e-5), OPS.add_rms_norm(x, total, weight, 1e-5)
    assert_near(changed, total)
    assert_near(out, wanted)
    assert torch.equal(add_rms_norm(x[-1:], residual[-1:].clone(), weight, 1e-5), out[-1:])
    assert torch.equal(rms_norm(changed, weight, 1e-5), out)


def test_norm_rounds_twice() -> None:
    """In fp16 the quotient is rounded, then the product: the fp32 product rounded once is another number."""
    x = draw(4, 64, dtype=torch.float16)
    weight = draw(64, dtype=torch.float16, seed=1)
    wide = x.float()
    quotient = wide / torch.sqrt((wide * wide).mean(dim=1, keepdim=True) + 1e-5)
    out = rms_norm(x, weight, 1e-5)
    twice, once = quotient.half() * weight, (quotient * weight.float()).half()
    assert (out == twice).float().mean() > 0.99  # the sum may be off by a last bit
    assert not torch.equal(once, twice)


@few
@given(tokens=st.integers(1, 3), size=st.integers(1, 1100), dtype=DTYPES, seed=st.integers(0, 99))
def test_silu_is_the_references(tokens: int, size: int, dtype: torch.dtype, seed: int) -> None:
    """Also past the end of a block; a row alone has the bits that it has in company."""
    gate_up = draw(tokens, 2 * size, dtype=dtype, seed=seed)
    out = silu_mul(gate_up)
    assert_near(out, OPS.silu_mul(gate_up))
    assert torch.equal(silu_mul(gate_up[-1:]), out[-1:])


def test_wrong_shapes_are_refused() -> None:
    """The error shows the shapes."""
    with pytest.raises(ValueError, match=r"gate_up \[1, 3\]"):
        silu_mul(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"weight \[3\]"):
        add_rms_norm(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(3), 1e-5)
