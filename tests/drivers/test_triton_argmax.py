"""Greedy and Gumbel sampling in triton, under its interpreter, against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops.argmax import BLOCK, argmax, gumbel_argmax, reference_argmax


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 3),
    size=st.integers(1, 2 * BLOCK + 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    broken=st.sampled_from([None, float("nan"), float("inf")]),
    seed=st.integers(0, 99),
)
def test_argmax_is_the_references(
    rows: int, size: int, dtype: torch.dtype, broken: float | None, seed: int
) -> None:
    """With many equal logits, the lowest id; what is not finite is told; noise moves the choice."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-9, 4, (rows, size), generator=generator).to(dtype)
    noise = torch.randn(rows, size, generator=generator)
    temperatures = torch.rand(rows, generator=generator) + 0.5
    ids, finite = argmax(logits)
    wanted, _ = reference_argmax(logits)
    assert (ids.tolist(), finite.tolist()) == (wanted.tolist(), [True] * rows)
    drawn, _ = gumbel_argmax(logits, noise, temperatures)
    wanted, _ = reference_argmax(logits.float() / temperatures[:, None] + noise)
    assert drawn.tolist() == wanted.tolist()
    if broken is not None:
        logits[-1, seed % size] = broken
        assert argmax(logits)[1].tolist() == [True] * (rows - 1) + [False]


def test_noise_of_another_shape_is_refused() -> None:
    """The error shows the shapes."""
    with pytest.raises(ValueError, match=r"noise \[1, 4\]"):
        gumbel_argmax(torch.zeros(1, 3), torch.zeros(1, 4), torch.ones(1))
