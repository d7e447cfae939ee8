"""Triton kernels on virtually contiguous keys and values, under the interpreter, against plain torch."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drivers.model.kv_layout import KV_DTYPES, kv_segments, kv_views
from llmos.device import KVFormat

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops.decode_attention import (
    BLOCK,
    SPLIT,
    decode_attention,
    reference_decode_attention,
)
from drivers.triton_ops.prefill_attention import prefill_attention, reference_prefill_attention
from drivers.triton_ops.rope_kv import reference_rope_write_kv, rope_write_kv

TOLERANCE = {"fp32": 2e-5, "fp16": 3e-3, "bf16": 1.6e-2}
FORMATS = st.sampled_from(sorted(TOLERANCE))
few = settings(max_examples=8, deadline=None)


@frozen
class Shape:
    """As much of a model as the layout needs."""

    num_kv_heads: int
    head_dim: int
    num_layers: int = 2


def empty_pages(shape: Shape, name: str, num_pages: int, tokens_per_page: int) -> torch.Tensor:
    """The second layer's view of frames that have a tail and are full of NaN."""
    segments = kv_segments(shape, name)
    frame_bytes = segments[0].bytes_per_token * tokens_per_page + 64
    kv = KVFormat(name, segments, frame_bytes, tokens_per_page)
    buffer = torch.full((num_pages * frame_bytes,), 0xFF, dtype=torch.uint8)
    return kv_views(buffer, shape, kv)[1]


@few
@given(
    positions=st.lists(st.integers(0, 11), min_size=1, max_size=3),
    group=st.integers(1, 2),
    half=st.integers(1, 5),
    name=FORMATS,
    seed=st.integers(0, 99),
)
def test_rope_and_write_are_the_references(
    positions: list[int], group: int, half: int, name: str, seed: int
) -> None:
    """Queries and every byte of the pages agree, also those that nobody writes."""
    generator = torch.Generator().manual_seed(seed)
    tokens, shape = len(positions), Shape(num_kv_heads=2, head_dim=2 * half)
    q, k, v = (
        torch.randn(tokens, heads, 2 * half, generator=generator).to(KV_DTYPES[name])
        for heads in (2 * group, 2, 2)
    )
    angles = torch.randn(tokens, half, generator=generator)
    first_pages = torch.arange(tokens) * 3  # each token is of a row of its own
    pages = [empty_pages(shape, name, 3 * tokens, 4) for _ in range(4)]
    inputs = (q, k, v, angles.cos(), angles.sin(), first_pages, torch.tensor(positions))
    out = rope_write_kv(*inputs, pages[0], pages[1])
    wanted = reference_rope_write_kv(*inputs, pages[2], pages[3])
    limit = TOLERANCE[name]
    for got, want in ((out, wanted), (pages[0], pages[2]), (pages[1], pages[3])):
        torch.testing.assert_close(got, want, rtol=limit, atol=limit, equal_nan=True)


@few
@given(
    lengths=st.lists(st.integers(1, SPLIT + BLOCK + 3), min_size=2, max_size=2),
    group=st.sampled_from([1, 3]),
    dim=st.sampled_from([8, 20]),
    tokens_per_page=st.sampled_from([5, 16]),
    name=FORMATS,
    seed=st.integers(0, 99),
)
@example(lengths=[2 * SPLIT + 1, SPLIT], group=3, dim=8, tokens_per_page=5, name="bf16", seed=0)
@example(lengths=[BLOCK, BLOCK + 1], group=1, dim=8, tokens_per_page=16, name="fp16", seed=0)
def test_decode_is_the_references_and_a_rows_own(
    lengths: list[int], group: int, dim: int, tokens_per_page: int, name: str, seed: int
) -> None:
    """NaN past a row's end is not seen; a row has the same bits alone, elsewhere and in a larger grid."""
    generator = torch.Generator().manual_seed(seed)
    shape = Shape(num_kv_heads=1, head_dim=dim)
    row_pages = -(-max(lengths) // tokens_per_page)
    k_pages, v_pages = (empty_pages(shape, name, 2 * row_pages, tokens_per_page) for _ in range(2))
    for row, length in enumerate(lengths):
        at = torch.arange(length)
        for pages in (k_pages, v_pages):
            numbers = torch.randn(length, 1, dim, generator=generator).to(pages.dtype)
            pages[row * row_pages + at // tokens_per_page, at % tokens_per_page] = numbers
    q = torch.randn(2, group, dim, generator=generator).to(KV_DTYPES[name])
    first_pages, ends = torch.tensor([0, row_pages]), torch.tensor(lengths)
    out = decode_attention(q, k_pages, v_pages, first_pages, ends, max(lengths))
    wanted = reference_decode_attention(q, k_pages, v_pages, first_pages, ends)
    torch.testing.assert_close(out, wanted, rtol=TOLERANCE[name], atol=TOLERANCE[name])
    turned = decode_attention(
        q.flip(0), k_pages, v_pages, first_pages.flip(0), ends.flip(0), max(lengths) + SPLIT
    )
    assert torch.equal(turned.flip(0), out)
    alone = decode_attention(q[1:], k_pages, v_pages, first_pages[1:], ends[1:], lengths[1])
    assert torch.equal(alone, out[1:])


@few
@given(
    spans=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 20)), min_size=2, max_size=2),
    group=st.sampled_from([1, 2]),
    tokens_per_page=st.sampled_from([5, 16]),
    name=FORMATS,
    cut=st.integers(0, 19),
    seed=st.integers(0, 99),
)
@example(spans=[(15, 18), (60, 8)], group=2, tokens_per_page=5, name="bf16", cut=3, seed=0)
def test_prefill_is_the_references_however_it_is_cut(
    spans: list[tuple[int, int]], group: int, tokens_per_page: int, name: str, cut: int, seed: int
) -> None:
    """NaN past a row's end is not seen; a prompt cut in two chunks, alone, has the bits that it has whole."""
    generator = torch.Generator().manual_seed(seed)
    shape = Shape(num_kv_heads=1, head_dim=8)
    row_pages = -(-90 // tokens_per_page)
    k_pages, v_pages = (empty_pages(shape, name, 2 * row_pages, tokens_per_page) for _ in range(2))
    for row, (start, count) in enumerate(spans):
        at = torch.arange(start + count)
        for pages in (k_pages, v_pages):
            numbers = torch.randn(start + count, 1, 8, generator=generator).to(pages.dtype)
            pages[row * row_pages + at // tokens_per_page, at % tokens_per_page] = numbers
    (start, count), (second_start, second_count) = spans
    q = torch.randn(count + second_count, group, 8, generator=generator).to(KV_DTYPES[name])
    rows = (
        torch.tensor([0, row_pages]),
        torch.tensor([start, second_start]),
        torch.tensor([0, count, count + second_count]),
    )
    out = prefill_attention(q, k_pages, v_pages, *rows, max(count, second_count))
    wanted = reference_prefill_attention(q, k_pages, v_pages, *rows)
    torch.testing.assert_close(out, wanted, rtol=TOLERANCE[name], atol=TOLERANCE[name])
    cut = min(cut, count - 1)
    chunks = ((0, cut), (cut, count)) if cut else ((0, count),)
    for begin, end in chunks:
        one = (torch.tensor([0]), torch.tensor([start + begin]), torch.tensor([0, end - begin]))
        part = prefill_attention(q[begin:end], k_pages, v_pages, *one, end - begin)
        assert torch.equal(part, out[begin:end])


def test_wrong_arguments_of_kv_kernels_are_refused() -> None:
    """The error shows the shapes."""
    pages, one = torch.zeros(1, 4, 2, 8), torch.ones(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"q \[1, 3, 8\]"):
        decode_attention(torch.zeros(1, 3, 8), pages, pages, one, one, 1)
    heads, angles = torch.zeros(1, 2, 7), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"q \[1, 2, 7\]"):
        rope_write_kv(heads, heads, heads, angles, angles, one, one, pages, pages)
