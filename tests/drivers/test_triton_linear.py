"""The product in fixed tiles, in triton, against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_device import draw

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.ops.reference import ReferenceOps
from drivers.triton_ops import linear as linear_module
from drivers.triton_ops.linear import HEIGHTS, TritonLinear, linear, reference_linear
from drivers.triton_ops.ops import TritonOps

TOLERANCE = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@settings(max_examples=10)
@given(
    tokens=st.integers(1, 19),
    size_in=st.integers(1, 131),
    size_out=st.integers(1, 67),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    has_bias=st.booleans(),
    height=st.sampled_from(HEIGHTS),
    seed=st.integers(0, 99),
)
def test_product_is_the_references(
    tokens: int, size_in: int, size_out: int, dtype: torch.dtype, has_bias: bool, height: int, seed: int
) -> None:
    """Ragged in every dimension; a row alone has the bits that it has in company."""
    x = draw(tokens, size_in, dtype=dtype, seed=seed)
    weight = draw(size_out, size_in, dtype=dtype, seed=seed + 1)
    bias = draw(size_out, dtype=dtype, seed=seed + 2) if has_bias else None
    out = linear(x, weight, bias, height)
    limit = 2 * TOLERANCE[dtype]
    torch.testing.assert_close(out, reference_linear(x, weight, bias), rtol=limit, atol=limit)
    assert torch.equal(linear(x[-1:].clone(), weight, bias, height), out[-1:])


def test_heights_that_do_not_agree_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A higher tile that rounds differently is left out; of the others the number of rows decides."""
    weight, x = draw(40, 64, dtype=torch.float16), draw(70, 64, dtype=torch.float16, seed=1)
    used: list[int] = []
    true_linear = linear

    def uneven(x, weight, bias=None, height=HEIGHTS[0], *, bad: int):
        used.append(height)
        out = true_linear(x, weight, bias, height)
        return out + 1 if height == bad else out

    for bad, wanted in ((16, (64, 128)), (64, (16, 128)), (0, HEIGHTS)):
        monkeypatch.setattr(
            linear_module, "linear", lambda *args, bad=bad, **kwargs: uneven(*args, **kwargs, bad=bad)
        )
        products = TritonLinear()
        agreeing = products.heights(weight)
        assert set(agreeing) <= set(wanted)
        assert agreeing[-1] == HEIGHTS[-1]
        used.clear()
        whole = products(x, weight, None)
        fitting = [height for height in agreeing if height < 2 * len(x)]
        assert used == [fitting[-1] if fitting else agreeing[0]]
        assert torch.equal(products(x[:1].clone(), weight, None), whole[:1])


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
