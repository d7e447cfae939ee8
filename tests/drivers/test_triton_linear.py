"""The product in fixed tiles, in triton, under its interpreter, against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops.linear import linear, reference_linear

TOLERANCE = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@settings(max_examples=10, deadline=None)
@given(
    tokens=st.integers(1, 19),
    size_in=st.integers(1, 131),
    size_out=st.integers(1, 67),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    seed=st.integers(0, 99),
)
def test_product_is_the_references(
    tokens: int, size_in: int, size_out: int, dtype: torch.dtype, seed: int
) -> None:
    """Ragged in every dimension; a row alone has the bits that it has in company."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, size_in, generator=generator).to(dtype)
    weight = torch.randn(size_out, size_in, generator=generator).to(dtype)
    out = linear(x, weight)
    torch.testing.assert_close(out, reference_linear(x, weight), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(linear(x[-1:], weight), out[-1:])


def test_a_product_that_does_not_fit_is_refused() -> None:
    """The error shows the shapes."""
    with pytest.raises(ValueError, match=r"x \[1, 3\] and weight \[2, 4\]"):
        linear(torch.zeros(1, 3), torch.zeros(2, 4))
