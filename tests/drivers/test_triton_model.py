"""A whole model's step on triton's operations: near the reference, and transparent to the bit."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_zoo import Memory, random_model
from triton_device import DEVICE

from drivers.model.transformer import Transformer
from llmos.device import Row

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops.ops import TritonOps

# of logits that go up to about 30
TOLERANCE = {"fp32": 2e-4, "fp16": 0.1, "bf16": 1.5, "w8a8": 0.4, "w4a8": 0.4}
NUM_LAYERS = {"fp32": 2, "fp16": 1, "bf16": 1, "w8a8": 1, "w4a8": 1}
SIZES = {"hidden_size": 40, "intermediate_size": 72, "num_heads": 3, "num_kv_heads": 1, "head_dim": 16}


@functools.cache
def models(
    dtype: str, window: int | None = None, use_library: bool = False, kv: str | None = None
) -> tuple[Transformer, Transformer]:
    """A tiny model on triton, and the same on the reference."""
    on_triton, on_torch = (
        random_model(
            dtype, window=window, kv=kv, ops=ops, device=DEVICE, num_layers=NUM_LAYERS[dtype], **SIZES
        )
        for ops in (TritonOps(use_library=use_library), None)
    )
    assert isinstance(on_triton, Transformer)
    assert isinstance(on_torch, Transformer)
    return on_triton, on_torch


def tokens_of(seed: int, num_tokens: int) -> tuple[int, ...]:
    """Pseudo-random token ids."""
    return tuple(torch.randint(101, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist())


ALL_MODELS = pytest.mark.parametrize(
    ("dtype", "window", "use_library", "kv"),
    [
        ("fp32", None, False, None), ("fp32", 9, True, None), ("fp16", None, False, "int8"),
        ("bf16", 9, False, None), ("w8a8", 9, False, "int8"), ("w4a8", None, False, None),
    ],
)  # fmt: skip


@ALL_MODELS
def test_logits_are_near_the_references(
    dtype: str, window: int | None, use_library: bool, kv: str | None
) -> None:
    """Of a prompt, and of the tokens behind it, for rows of several lengths in one step."""
    on_triton, on_torch = models(dtype, window, use_library, kv)
    memories = [Memory(model, 3, seed=None) for model in (on_triton, on_torch)]
    rows = [Row(asid, 0, tokens_of(asid, size), True) for asid, size in enumerate((33, 1, 18))]
    after = [Row(row.asid, len(row.tokens), (row.asid,), True) for row in rows]
    for step in (rows, after):
        got, wanted = (memory.run(*step) for memory in memories)
        torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype] / 10, atol=TOLERANCE[dtype])


@ALL_MODELS
def test_chunks_and_company_change_no_bit(
    dtype: str, window: int | None, use_library: bool, kv: str | None
) -> None:
    """Logits, keys and values of a prompt are those of a quiet run, whatever rides along and however cut."""
    model, _ = models(dtype, window, use_library, kv)
    tokens = tokens_of(3, 24)
    quiet = Memory(model, 1, seed=None)
    expected = quiet.run(Row(0, 0, tokens, True))[0]
    assert expected.isfinite().all()

    @settings(max_examples=2)
    @given(
        cuts=st.lists(st.sampled_from([1, 2, 7, 15]), min_size=2, max_size=3),
        company=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 9])), max_size=2),
        place=st.integers(0, 2),
    )
    @example(cuts=[21, 1], company=[(40, 1), (3, 9)], place=1)
    def check(cuts: list[int], company: list[tuple[int, int]], place: int) -> None:
        memory = Memory(model, 3, seed=None)
        start = step = 0
        while start < len(tokens):
            size = min(cuts[step] if step < len(cuts) else 24, len(tokens) - start)
            row = Row(0, start, tokens[start : start + size], start + size == len(tokens))
            # the neighbours read pages that were never written: NaN rides along in the same products
            others = [Row(1 + i, at, tokens_of(i, n), False) for i, (at, n) in enumerate(company)]
            others.insert(min(place, len(others)), row)
            logits = memory.run(*others)
            start, step = start + size, step + 1
        assert torch.equal(logits[0], expected)
        assert torch.equal(memory.contents(0, len(tokens)), quiet.contents(0, len(tokens)))

    check()


def test_rows_of_scattered_pages_are_refused() -> None:
    """These operations read no page table."""
    with pytest.raises(ValueError, match="not consecutive"):
        Memory(models("fp32")[0], 1, seed=0).run(Row(0, 0, tokens_of(0, 40), True))
