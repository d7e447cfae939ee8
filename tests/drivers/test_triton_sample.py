"""Sampling on the device, in triton, against the host's readable sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_device import DEVICE

from drivers.model.reference_sampler import choose_token, choose_tokens
from native.sampling import Cut, Draw
from native.sampling import sample as sample_by_host

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.sample import BLOCK, NUM_NUMBERS, can_draw, draw_limits, draw_numbers, sample

IDS = st.lists(st.integers(0, 9), max_size=9).map(lambda ids: np.unique(ids).astype(np.int64))

DRAWS = st.builds(
    Draw,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    uniform=st.floats(0, 1, exclude_max=True),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 3000]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    allowed_ids=IDS,
    banned_ids=IDS,
)


def logits_of(num_rows: int, size: int, levels: int, seed: int) -> torch.Tensor:
    """Normal numbers; with levels, as many different ones at most, so that many are equal."""
    logits = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed)) * 3
    return (logits * levels / 9).round() * 9 / levels if levels else logits


def draw_all(logits: torch.Tensor, draws: list[Draw | None]) -> list[int]:
    """Tokens by the kernel."""
    limits = draw_limits(draws, logits.shape[1])
    ids, num_bad = sample(
        logits.to(DEVICE),
        torch.from_numpy(draw_numbers(draws)).to(DEVICE),
        None if limits is None else torch.from_numpy(limits).to(DEVICE),
    )
    assert not num_bad.any()
    return ids.tolist()


@settings(max_examples=15)
@given(
    draws=st.lists(DRAWS, min_size=1, max_size=2),
    size=st.one_of(st.integers(10, 60), st.integers(BLOCK - 1, BLOCK + 9)),
    levels=st.sampled_from([0, 0, 2, 5]),
    seed=st.integers(0, 99),
)
@example(draws=[Draw(1.0, 0.999999, top_k=3, top_p=0.5)], size=12, levels=1, seed=0)
@example(draws=[Draw(allowed_ids=np.array([3, 7]), banned_ids=np.array([3, 7]))], size=12, levels=0, seed=0)
@example(draws=[Draw(1.0, 0.3, top_k=5, allowed_ids=np.array([2, 8]))], size=13, levels=2, seed=1)
@example(draws=[Draw(1.0, 0.5, top_p=0.5), Draw(1.0, 0.99, top_p=0.26)], size=BLOCK + 5, levels=1, seed=3)
def test_tokens_are_the_references(draws: list[Draw], size: int, levels: int, seed: int) -> None:
    """Same cuts and limits, ties included: the same token; alone a row has the token of one in company."""
    logits = logits_of(len(draws), size, levels, seed)
    got = draw_all(logits, list(draws))
    assert got == [choose_token(row.numpy(), draw).token for row, draw in zip(logits, draws, strict=True)]
    assert draw_all(logits[-1:], [draws[-1]]) == got[-1:]


@settings(max_examples=4)
@given(draw=DRAWS, levels=st.sampled_from([0, 1, 3]), seed=st.integers(0, 99))
def test_every_random_number_lands_where_the_references_does(draw: Draw, levels: int, seed: int) -> None:
    """Eight numbers across the whole of what is kept: its ends show the cuts themselves."""
    numbers = [0.0, 1e-9, 0.2, 0.5, 0.8, 0.99, 1 - 1e-9, 1 - 2**-53]
    logits = logits_of(1, 50, levels, seed).expand(8, 50).contiguous()
    draws = [evolve(draw, uniform=number) for number in numbers]
    wanted = [choose_token(row.numpy(), each).token for row, each in zip(logits, draws, strict=True)]
    assert draw_all(logits, list(draws)) == wanted


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_counted(bad: float) -> None:
    """Of its row alone; the id is one of the vocabulary all the same."""
    logits = logits_of(3, 30, 0, 1)
    logits[1, 4:7] = bad
    logits[2] = bad
    numbers = torch.from_numpy(draw_numbers([Draw(1.0, 0.5)] * 3)).to(DEVICE)
    ids, num_bad = sample(logits.to(DEVICE), numbers)
    assert num_bad.tolist() == [0, 3, 30]
    assert all(0 <= token < 30 for token in ids.tolist())


def test_the_host_decides_what_the_device_cannot() -> None:
    """Penalties, biases, given tokens and other cuts take a copy of the logits; so does what is told."""
    some = np.array([3], dtype=np.int64)
    by_host = [
        Draw(1.0, 0.5, seen_ids=some, num_output=some), Draw(bias_ids=some, bias_values=np.ones(1)),
        Draw(1.0, 0.5, num_top=2), Draw(given=3), Draw(1.0, 0.5, cuts=(Cut("temperature", 1.0),)),
        Draw(1.0, 0.5, num_top=2, allowed_ids=some),
    ]  # fmt: skip
    assert not any(map(can_draw, by_host))
    assert can_draw(None)
    assert can_draw(by_host[-1].token_only)  # only what is told is the host's
    draws = [None, *by_host, Draw(0.7, 0.3, top_k=5, banned_ids=some)]
    logits = logits_of(len(draws), 40, 0, 2)
    choices = choose_tokens(logits.to(DEVICE), draws, TritonOps())
    rows = [row.numpy() for row in logits]
    assert choices == [sample_by_host(row, draw or Draw()) for row, draw in zip(rows, draws, strict=True)]
    wanted = [choose_token(row, draw or Draw()).token for row, draw in zip(rows, draws, strict=True)]
    assert [choice.token for choice in choices] == wanted
    assert len(choices[3].top_ids) == 2


def test_numbers_of_another_shape_are_refused() -> None:
    """The error shows the shapes."""
    with pytest.raises(ValueError, match=r"limits \[1, 2\]"):
        sample(
            torch.zeros(1, 3),
            torch.zeros(NUM_NUMBERS, 1, dtype=torch.float64),
            torch.zeros(1, 2, dtype=torch.uint8),
        )
    with pytest.raises(ValueError, match=r"numbers \[6, 2\]"):
        sample(torch.zeros(1, 3), torch.zeros(NUM_NUMBERS, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="contiguous fp32"):
        sample(torch.zeros(1, 3, dtype=torch.float16), torch.zeros(NUM_NUMBERS, 1, dtype=torch.float64))
