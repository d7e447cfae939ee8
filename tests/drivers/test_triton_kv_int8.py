"""Keys and values in int8 in triton: numbers are the processor's to the bit, attention is the reference's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_device import DEVICE, draw

from drivers.ops.batch import ContiguousPages, build_batch
from drivers.ops.int8 import round_rows, scales_of
from drivers.ops.interface import Angles, AttentionShape
from drivers.ops.kv_pages import LayerPages
from drivers.ops.reference import ReferenceOps
from llmos.device import Row
from native.quantise import quantise_rows

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from test_triton_attention import STARTS, Shape, batch_of, empty_pages

from drivers.triton_ops.attention import SPLIT, attention, reference_attention
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.plan import plan_attention

FLOATS = st.sampled_from(sorted((torch.float32, torch.float16, torch.bfloat16), key=str))
TOLERANCE = {torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 3e-2}


@settings(max_examples=8)
@given(
    starts=st.lists(st.integers(0, 11), min_size=1, max_size=3),
    half=st.sampled_from([2, 4, 10]),
    dtype=FLOATS,
    has_zero=st.booleans(),
    seed=st.integers(0, 99),
)
def test_heads_are_rounded_as_the_processor_does(starts, half, dtype, has_zero, seed) -> None:
    """Numbers and scales to the bit; zeros have scale 0; no other slot, and no padding, is written."""
    tokens, dim, heads = len(starts), 2 * half, 2
    qkv = draw(tokens, 6, dim, dtype=dtype, seed=seed)
    if has_zero:
        qkv[-1, 5] = 0.0
    zero = torch.zeros(tokens, half, device=DEVICE)
    quarter = Angles(zero, zero + 1)  # turned by it, halves change places
    pages = [empty_pages(Shape(heads, dim), "int8", 3 * tokens, 4) for _ in range(2)]
    batch = batch_of([(start, 1) for start in starts], 3, 4)
    q = TritonOps().rope_write_kv(qkv, None, quarter, LayerPages(*pages), batch)
    first, second = qkv.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    assert torch.equal(q.float(), turned[:, :2])
    for page, wanted in zip(pages, (turned[:, 2:4], qkv[:, 4:].float()), strict=True):
        rows = quantise_rows(wanted.reshape(-1, dim).cpu().numpy())
        numbers, scales = page[batch.pages, batch.slots], scales_of(page)[batch.pages, batch.slots]
        np.testing.assert_array_equal(numbers.reshape(-1, dim).cpu().numpy(), rows.values[:, :dim])
        np.testing.assert_array_equal(scales.reshape(-1).cpu().numpy(), rows.scale)
        page[batch.pages, batch.slots] = -1
        scales_of(page)[batch.pages, batch.slots] = torch.nan
        assert (page == -1).all()
        assert scales_of(page).isnan().all()
    padded = build_batch([Row(0, 0, (0,), True)], lambda asid, vpn: -1, 4, DEVICE)
    TritonOps().rope_write_kv(qkv[:1], None, Angles(zero[:1], zero[:1]), LayerPages(*pages), padded)
    assert all((page == -1).all() for page in pages)


@settings(max_examples=8)
@given(
    rows=st.lists(st.tuples(STARTS, st.sampled_from([1, 1, 2, 20])), min_size=2, max_size=2),
    group=st.sampled_from([1, 3]),
    dim=st.sampled_from([8, 20]),
    tokens_per_page=st.sampled_from([5, 16]),
    window=st.sampled_from([None, None, 30]),
    dtype=FLOATS,
    seed=st.integers(0, 99),
)
@example(
    rows=[(SPLIT - 3, 7), (SPLIT, 1)], group=3, dim=8, tokens_per_page=5, window=None, dtype=torch.float32,
    seed=0,
)  # fmt: skip
def test_attention_reads_numbers_and_scales(rows, group, dim, tokens_per_page, window, dtype, seed) -> None:
    """Near a softmax over numbers times scales; a token's bits are those that it has alone.

    Scales past a row's end are NaN, and are not seen.
    """
    shape = AttentionShape(group, 1, dim, window)
    row_pages = -(-(SPLIT + 100) // tokens_per_page)
    k_pages, v_pages = (empty_pages(Shape(1, dim), "int8", 2 * row_pages, tokens_per_page) for _ in "kv")
    for row, (start, count) in enumerate(rows):
        at = torch.arange(start + count, device=DEVICE)
        place = (row * row_pages + at // tokens_per_page, at % tokens_per_page)
        for side, pages in enumerate((k_pages, v_pages)):
            numbers, scales = round_rows(draw(start + count, 1, dim, seed=seed + 2 * row + side))
            pages[place], scales_of(pages)[place] = numbers, scales
    q = draw(sum(count for _, count in rows), group, dim, dtype=dtype, seed=seed + 9)
    batch = batch_of(rows, row_pages, tokens_per_page)
    out = attention(q, k_pages, v_pages, plan_attention(batch.spans, shape, DEVICE))
    spans = [(row * row_pages, *row_at) for row, row_at in enumerate(rows)]
    wanted = reference_attention(q, k_pages, v_pages, spans, shape)
    torch.testing.assert_close(out, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    reference = ReferenceOps()
    by_tiles = reference.attention(q, LayerPages(k_pages, v_pages), reference.plan_attention(batch, shape))
    torch.testing.assert_close(by_tiles, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    token = 0
    for row, (start, count) in enumerate(rows):
        for chosen in {0, count - 1}:
            alone = build_batch(
                [Row(row, start + chosen, (0,), True)], ContiguousPages(row_pages), tokens_per_page, DEVICE
            )
            plan = plan_attention(alone.spans, shape, DEVICE)
            row_of_q = q[token + chosen : token + chosen + 1].clone()
            assert torch.equal(attention(row_of_q, k_pages, v_pages, plan)[0], out[token + chosen])
        token += count


def test_heads_that_leave_scales_unaligned_are_refused() -> None:
    """A view of such pages cannot be made; the error shows the size."""
    with pytest.raises(ValueError, match="int8 heads of 6"):
        empty_pages(Shape(1, 6), "int8", 1, 4)
