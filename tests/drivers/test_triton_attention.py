"""Attention, and rope with the write of keys and values, in triton, against plain torch."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_device import DEVICE, draw

from drivers.model.kv_layout import KV_DTYPES, kv_segments, kv_views
from drivers.ops.batch import ContiguousPages, build_batch
from drivers.ops.interface import Angles, AttentionShape, HeadNorms
from drivers.ops.kv_pages import LayerPages
from drivers.ops.reference import ReferenceOps
from llmos.device import KVFormat, Row

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.triton_ops import attention as attention_module
from drivers.triton_ops import ops as ops_module
from drivers.triton_ops.attention import SPLIT, attention, reference_attention, verify_tile_rows
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.plan import HIGH_TILE_ROWS, TILE_ROWS, plan_attention
from drivers.triton_ops.rope_kv import rope_write_kv

TOLERANCE = {"fp32": 2e-5, "fp16": 3e-3, "bf16": 1.6e-2}
FORMATS = st.sampled_from(sorted(TOLERANCE))
STARTS = st.one_of(st.integers(0, 90), st.integers(SPLIT - 2, SPLIT + 70))
few = settings(max_examples=8)


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
    buffer = torch.full((num_pages * frame_bytes,), 0xFF, dtype=torch.uint8, device=DEVICE)
    return kv_views(buffer, shape, kv)[1]


def batch_of(rows: list[tuple[int, int]], pages_per_space: int, tokens_per_page: int):
    """A batch of (start, number of tokens), each in a space of its own."""
    return build_batch(
        [Row(asid, start, (0,) * count, True) for asid, (start, count) in enumerate(rows)],
        ContiguousPages(pages_per_space), tokens_per_page, DEVICE,
    )  # fmt: skip


@few
@given(
    starts=st.lists(st.integers(0, 11), min_size=1, max_size=3),
    group=st.integers(1, 2),
    half=st.integers(1, 5),
    name=FORMATS,
    has_norms=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rope_and_write_are_the_references(starts, group, half, name, has_norms, seed) -> None:
    """Queries and every byte of the pages agree, also those that nobody writes; padding writes nothing."""
    shape, heads, dtype = Shape(num_kv_heads=2, head_dim=2 * half), 2 * group, KV_DTYPES[name]
    qkv = draw(len(starts), heads + 4, 2 * half, dtype=dtype, seed=seed)
    turns = draw(len(starts), half, seed=seed + 1)
    norms = None
    if has_norms:
        norms = HeadNorms(draw(2 * half, dtype=dtype), draw(2 * half, dtype=dtype, seed=1), 1e-5)
    batch = batch_of([(start, 1) for start in starts], 3, 4)
    pages = [empty_pages(shape, name, 3 * len(starts), 4) for _ in range(6)]
    inputs = (qkv, norms, Angles(turns.cos(), turns.sin()))
    out = TritonOps().rope_write_kv(*inputs, LayerPages(pages[0], pages[1]), batch)
    wanted = ReferenceOps().rope_write_kv(*inputs, LayerPages(pages[2], pages[3]), batch)
    limit = 2 * TOLERANCE[name] if has_norms else TOLERANCE[name]
    for got, want in ((out, wanted), (pages[0], pages[2]), (pages[1], pages[3])):
        torch.testing.assert_close(got, want, rtol=limit, atol=limit, equal_nan=True)
    unplaced = torch.full_like(batch.pages, -1)
    rope_write_kv(*inputs, LayerPages(pages[4], pages[5]), unplaced, batch.slots)
    assert pages[4].isnan().all()
    assert pages[5].isnan().all()


@settings(max_examples=10)
@given(
    rows=st.lists(
        st.tuples(STARTS, st.sampled_from([1, 1, 2, 20])), min_size=2, max_size=2
    ),
    group=st.sampled_from([1, 3]),
    dim=st.sampled_from([8, 20]),
    tokens_per_page=st.sampled_from([5, 16]),
    window=st.sampled_from([None, None, 1, 30, SPLIT]),
    name=FORMATS,
    seed=st.integers(0, 99),
)  # fmt: skip
@example(
    rows=[(SPLIT - 3, 7), (SPLIT, 1)], group=3, dim=8, tokens_per_page=5, window=None, name="bf16", seed=0
)
@example(rows=[(SPLIT + 40, 1), (62, 5)], group=1, dim=8, tokens_per_page=16, window=60, name="fp32", seed=0)
@example(rows=[(0, 1), (0, 2)], group=1, dim=8, tokens_per_page=5, window=1, name="bf16", seed=0)
def test_attention_alone_and_in_company(rows, group, dim, tokens_per_page, window, name, seed):
    """NaN past a row's end is not seen; a token alone has the bits that it has in a chunk and in company."""
    shape = AttentionShape(group, 1, dim, window)
    row_pages = -(-(SPLIT + 100) // tokens_per_page)
    k_pages, v_pages = (empty_pages(Shape(1, dim), name, 2 * row_pages, tokens_per_page) for _ in range(2))
    for row, (start, count) in enumerate(rows):
        at = torch.arange(start + count, device=DEVICE)
        for side, pages in enumerate((k_pages, v_pages)):
            numbers = draw(start + count, 1, dim, dtype=pages.dtype, seed=seed + 2 * row + side)
            pages[row * row_pages + at // tokens_per_page, at % tokens_per_page] = numbers
    q = draw(sum(count for _, count in rows), group, dim, dtype=KV_DTYPES[name], seed=seed + 9)
    batch = batch_of(rows, row_pages, tokens_per_page)
    out = attention(q, k_pages, v_pages, plan_attention(batch.spans, shape, DEVICE))
    spans = [(row * row_pages, *row_at) for row, row_at in enumerate(rows)]
    wanted = reference_attention(q, k_pages, v_pages, spans, shape)
    torch.testing.assert_close(out, wanted, rtol=TOLERANCE[name], atol=TOLERANCE[name])
    high = plan_attention(batch.spans, shape, DEVICE, HIGH_TILE_ROWS)
    out_high = attention(q, k_pages, v_pages, high)
    torch.testing.assert_close(out_high, wanted, rtol=TOLERANCE[name], atol=TOLERANCE[name])
    token = 0
    for row, (start, count) in enumerate(rows):
        for chosen in {0, count - 1}:
            alone = [(0, 1)] * row + [(start + chosen, 1)]  # in the same space
            alone_batch = batch_of(alone, row_pages, tokens_per_page)
            plan = plan_attention(alone_batch.spans[-1:], shape, DEVICE)
            rows_of_q = q[token + chosen].expand(row + 1, group, dim).contiguous()
            assert torch.equal(attention(rows_of_q, k_pages, v_pages, plan)[-1], out[token + chosen])
        token += count


@pytest.mark.parametrize("kv", [torch.float32, torch.int8])
def test_high_tiles_are_for_prompts_where_they_give_the_same_bits(
    kv: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at before they are used; where a row comes out otherwise the low ones stay."""
    shape = AttentionShape(8, 2, 8, 40)
    agreed = verify_tile_rows(shape, torch.float32, kv, DEVICE)
    assert agreed in (TILE_ROWS, HIGH_TILE_ROWS)
    seen: list[int] = []
    true_attention = attention

    def uneven(q, k_pages, v_pages, plan):
        seen.append(plan.tile_rows)
        out = true_attention(q, k_pages, v_pages, plan)
        out[-1] += plan.tile_rows == HIGH_TILE_ROWS
        return out

    monkeypatch.setattr(attention_module, "attention", uneven)
    assert verify_tile_rows(shape, torch.float32, kv, DEVICE) == TILE_ROWS
    assert seen == [TILE_ROWS, HIGH_TILE_ROWS]
    monkeypatch.setattr(ops_module, "INTERPRETED", False)
    batch = batch_of([(3, 40)], 3, 16)
    for rows in (TILE_ROWS, HIGH_TILE_ROWS):
        monkeypatch.setattr(ops_module, "verify_tile_rows", lambda *given, rows=rows: rows)
        ops = TritonOps(use_library=False)
        ops.prepare_attention(shape, torch.float32, kv, DEVICE)
        plan = ops.plan_attention(batch, shape)
        assert (plan.tile_rows, plan.tile_length) == (rows, rows // 4)
        firsts, ends = plan.tiles[1:3].tolist()
        assert sorted(zip(firsts, ends, strict=True)) == [
            (max(3, begin), min(43, begin + rows // 4)) for begin in range(0, 43, rows // 4)
        ]


def test_a_larger_grid_changes_no_bit() -> None:
    """Programs for splits that no row reaches do nothing; padding is 0."""
    shape = AttentionShape(2, 1, 8)
    pages = draw(2, 1, 16, 1, 8)
    plan = plan_attention(batch_of([(9, 1)], 1, 16).spans, shape, DEVICE)
    padded = torch.cat((plan.singles, torch.tensor([[0], [-1], [1]], device=DEVICE)), dim=1)
    q = draw(2, 2, 8)
    out = attention(q[:1].contiguous(), pages[0], pages[1], plan)
    larger = attention_module.TritonPlan(shape, padded, plan.tiles, 3 * SPLIT)
    row, padding = attention(q, pages[0], pages[1], larger)
    assert torch.equal(row, out[0])
    assert not padding.any()


def test_what_does_not_fit_is_refused() -> None:
    """The error shows the shapes, or the pages."""
    pages, none = torch.zeros(1, 4, 2, 8), torch.zeros(1, dtype=torch.int64)
    plan = plan_attention((), AttentionShape(4, 2, 8), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"q \[1, 3, 8\]"):
        attention(torch.zeros(1, 3, 8), pages, pages, plan)
    angles = Angles(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"qkv \[1, 6, 7\]"):
        rope_write_kv(torch.zeros(1, 6, 7), None, angles, LayerPages(pages, pages), none, none)
    scattered = build_batch([Row(0, 0, (0,) * 9, True)], lambda asid, vpn: (3, 1, 2)[vpn], 4)
    with pytest.raises(ValueError, match=r"\(3, 1, 2\) of a row are not consecutive"):
        plan_attention(scattered.spans, AttentionShape(4, 2, 8), torch.device("cpu"))
