"""Causal attention over virtually contiguous keys: one order of summation, for a new token and for a prompt.

A program takes a tile: up to 64 queries, or 128 of a prompt where those were seen to give the same bits. They
are positions times the query heads of one key-value head. Tiles begin at multiples of their length. Keys are
summed in blocks that begin at multiples of BLOCK, blocks in splits that begin at multiples of SPLIT, splits
joined in the order of positions:

    m' = max(m, m_j)      l' = l 2^(m - m') + l_j 2^(m_j - m')      o' likewise;      result = o / l

A split that a query does not see has m_j = -inf and l_j = o_j = 0, and changes no bit. So it is free to
choose who joins: for a prompt the program itself, split by split; for a lone token, whose splits are read
side by side by as many programs, a second kernel. Both have the same tiles, blocks and arithmetic, so a
position's bits are the same in whatever chunk it arrives, and beside whatever rows.

Source: Dao et al. 2022, "FlashAttention", arXiv:2205.14135; Dao et al. 2023, "Flash-Decoding"; Milakov and
Gimelshein 2018, "Online normalizer calculation for softmax".
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.batch import Span
from drivers.ops.int8 import SCALE_BYTES, scales_of
from drivers.ops.interface import AttentionShape
from drivers.triton_ops.operands import MIN_DOT, operand_format
from drivers.triton_ops.plan import HIGH_TILE_ROWS, TILE_ROWS, TritonPlan, plan_attention

__all__ = ["BLOCK", "SPLIT", "attention", "reference_attention", "verify_tile_rows"]

# constants, because they are part of the order of summation
SPLIT = 512  # keys
BLOCK = 64
STAGES, HIGH_STAGES = 3, 2  # blocks in shared memory; with one more, high tiles spill registers
TILE_WARPS = 4  # for TILE_ROWS queries: a row of a product is always those of one warp
LOG2_E = 1.4426950408889634
UNLIMITED = 1 << 40  # a window that hides nothing


@triton.jit
def _join(best, total, weighted, split_best, split_total, split_weighted):
    """Add a split to those before it; nothing so far is -inf, 0 and 0."""
    new_best = tl.maximum(best, split_best)
    safe = tl.where(new_best == -float("inf"), 0.0, new_best)  # -inf - -inf would be NaN
    carry, scale = tl.exp2(best - safe), tl.exp2(split_best - safe)
    # told to fuse, the compiler fuses alike wherever this stands
    total = tl.fma(total, carry, split_total * scale)
    weighted = tl.fma(weighted, carry[:, None], split_weighted * scale[:, None])
    return new_best, total, weighted


@triton.jit
def _attend_split(
    queries, positions, start, end, page, k_pages, v_pages, kv_head, tokens_per_page, window, scale,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    num_kv_heads, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """Attend to the keys from start on, a multiple of BLOCK, to end: the largest score, sum and result."""
    at = tl.arange(0, WIDTH)
    best = tl.full((queries.shape[0],), -float("inf"), tl.float32)
    total = tl.zeros((queries.shape[0],), tl.float32)
    weighted = tl.zeros((queries.shape[0], WIDTH), tl.float32)
    for begin in range(start, end, BLOCK):
        keys = begin + tl.arange(0, BLOCK)
        key_page, slot = page + keys // tokens_per_page, keys % tokens_per_page
        # what lies past the end was never written by this row: it is not even read
        there = (keys < end)[:, None] & (at < DIM)[None, :]
        k_at = key_page * k_page_stride + slot * k_slot_stride + kv_head * k_head_stride
        k = tl.load(k_pages + k_at[:, None] + at[None, :], mask=there, other=0).to(queries.dtype)
        v_at = key_page * v_page_stride + slot * v_slot_stride + kv_head * v_head_stride
        v = tl.load(v_pages + v_at[:, None] + at[None, :], mask=there, other=0).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
        if INT8:
            # behind the page's numbers: see drivers/ops/int8.py. Whole numbers are exact in any format
            scales = tokens_per_page * num_kv_heads * DIM + 4 * (slot * num_kv_heads + kv_head)
            k_scale_at = (k_pages + key_page * k_page_stride + scales).to(
                tl.pointer_type(tl.float32), bitcast=True
            )
            v_scale_at = (v_pages + key_page * v_page_stride + scales).to(
                tl.pointer_type(tl.float32), bitcast=True
            )
            scores *= tl.load(k_scale_at, mask=keys < end, other=0.0)[None, :]
        seen = (keys[None, :] <= positions[:, None]) & (keys[None, :] > positions[:, None] - window)
        scores = tl.where(seen, scores, -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        safe = tl.where(new_best == -float("inf"), 0.0, new_best)
        carry = tl.exp2(best - safe)
        weights = tl.exp2(scores - safe[:, None])
        total = tl.fma(total, carry, tl.sum(weights, axis=1))
        if INT8:
            v_scales = tl.load(v_scale_at, mask=keys < end, other=0.0)[None, :]
            weights = tl.where(seen, weights * v_scales, 0.0)
        weighted = tl.dot(weights.to(queries.dtype), v, weighted * carry[:, None], input_precision="ieee")
        best = new_best
    return best, total, weighted


# the compiler must not make other code for other numbers that come from the whole batch
@triton.jit(do_not_specialize=["num_singles", "num_splits"])
def _attend_single(
    q, k_pages, v_pages, singles, num_singles, part_out, part_best, part_total, num_splits,
    num_kv_heads, tokens_per_page, window, scale,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    GROUP: tl.constexpr, PACKED: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr, INT8: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    single = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    page, position = tl.load(singles + single), tl.load(singles + num_singles + single)
    lowest = tl.maximum(position - window + 1, 0)
    start = tl.maximum(split * SPLIT, lowest // BLOCK * BLOCK)
    end = tl.minimum(position + 1, (split + 1) * SPLIT)
    if start < end:
        token = tl.load(singles + 2 * num_singles + single)
        row = tl.arange(0, TILE * PACKED)
        of_group = row % PACKED
        positions = position // TILE * TILE + row // PACKED
        at = tl.arange(0, WIDTH)
        mine = (positions == position) & (of_group < GROUP)
        heads = (token * num_kv_heads + kv_head) * GROUP + of_group
        real = mine[:, None] & (at < DIM)[None, :]
        queries = tl.load(q + heads[:, None] * DIM + at[None, :], mask=real, other=0.0).to(OPERAND)
        best, total, weighted = _attend_split(
            queries, positions, start, end, page, k_pages, v_pages, kv_head, tokens_per_page, window, scale,
            k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
            num_kv_heads, DIM, WIDTH, BLOCK, INT8,
        )  # fmt: skip
        part = ((single * num_kv_heads + kv_head) * GROUP + of_group) * num_splits + split
        tl.store(part_best + part, best, mask=mine)
        tl.store(part_total + part, total, mask=mine)
        tl.store(part_out + part[:, None] * DIM + at[None, :], weighted, mask=real)


@triton.jit(do_not_specialize=["num_singles", "num_splits"])
def _join_single(
    part_out, part_best, part_total, singles, num_singles, out, num_splits, num_heads, window,
    DIM: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    single = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(singles + num_singles + single)
    token = tl.load(singles + 2 * num_singles + single)
    at = tl.arange(0, WIDTH)
    if position < 0:  # padding, which is to be finite, whatever was in memory
        tl.store(out + (token * num_heads + head) * DIM + at, tl.zeros((WIDTH,), tl.float32), mask=at < DIM)
    else:
        one = tl.arange(0, 1)
        inside = (at < DIM) & (one == 0)[:, None]
        first = tl.maximum(position - window + 1, 0) // SPLIT
        best = tl.full((1,), -float("inf"), tl.float32)
        total = tl.zeros((1,), tl.float32)
        weighted = tl.zeros((1, WIDTH), tl.float32)
        part = (single * num_heads + head) * num_splits + one
        for split in range(first, position // SPLIT + 1):
            split_weighted = tl.load(
                part_out + (part + split)[:, None] * DIM + at[None, :], mask=inside, other=0.0
            )
            best, total, weighted = _join(
                best, total, weighted,
                tl.load(part_best + part + split), tl.load(part_total + part + split), split_weighted,
            )  # fmt: skip
        row = token * num_heads + head + one
        tl.store(out + row[:, None] * DIM + at[None, :], weighted / total[:, None], mask=inside)


@triton.jit(do_not_specialize=["num_tiles"])
def _attend_tile(
    q, k_pages, v_pages, tiles, num_tiles, out, num_kv_heads, tokens_per_page, window, scale,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    GROUP: tl.constexpr, PACKED: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr, INT8: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    page, first = tl.load(tiles + tile), tl.load(tiles + num_tiles + tile)
    end, token = tl.load(tiles + 2 * num_tiles + tile), tl.load(tiles + 3 * num_tiles + tile)
    row = tl.arange(0, TILE * PACKED)
    of_group = row % PACKED
    positions = first // TILE * TILE + row // PACKED
    at = tl.arange(0, WIDTH)
    mine = (positions >= first) & (positions < end) & (of_group < GROUP)
    heads = ((token + positions - first) * num_kv_heads + kv_head) * GROUP + of_group
    real = mine[:, None] & (at < DIM)[None, :]
    queries = tl.load(q + heads[:, None] * DIM + at[None, :], mask=real, other=0.0).to(OPERAND)
    best = tl.full((TILE * PACKED,), -float("inf"), tl.float32)
    total = tl.zeros((TILE * PACKED,), tl.float32)
    weighted = tl.zeros((TILE * PACKED, WIDTH), tl.float32)
    lowest = tl.maximum(first - window + 1, 0)
    for split_start in range(lowest // SPLIT * SPLIT, end, SPLIT):
        split_best, split_total, split_weighted = _attend_split(
            queries, positions, tl.maximum(split_start, lowest // BLOCK * BLOCK),
            tl.minimum(end, split_start + SPLIT), page, k_pages, v_pages, kv_head, tokens_per_page, window,
            scale,
            k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
            num_kv_heads, DIM, WIDTH, BLOCK, INT8,
        )  # fmt: skip
        best, total, weighted = _join(best, total, weighted, split_best, split_total, split_weighted)
    total = tl.where(total > 0.0, total, 1.0)  # of rows of padding, which may see no key
    tl.store(out + heads[:, None] * DIM + at[None, :], weighted / total[:, None], mask=real)


def attention(
    q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, plan: TritonPlan
) -> torch.Tensor:
    """Attention of each token over its row's keys up to its own position.

    Args:
        q: [num_tokens, num_heads, head_dim], rotated, contiguous.
        k_pages: one layer's keys [num_pages, tokens_per_page, num_kv_heads, head_dim], any strides but 1 for
            the last; the step's own keys are written. Slots past a row's end may hold anything. In int8, a
            head's scale lies where `scales_of` finds it; queries and weights are not rounded to 8 bits.
        v_pages: one layer's values, likewise.
        plan: which tokens there are. A row's pages are consecutive.

    Returns:
        [num_tokens, num_heads, head_dim] in q's number format; sums are fp32. Padding is 0.

    Raises:
        ValueError: a shape does not fit, or a tensor has the wrong strides.
    """
    shape = plan.shape
    heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
    if q.shape[1:] != (heads, dim) or k_pages.shape != v_pages.shape or k_pages.shape[2:] != (kv_heads, dim):
        raise ValueError(f"q {list(q.shape)}, k {list(k_pages.shape)}, v {list(v_pages.shape)}, {shape}")
    if not q.is_contiguous() or k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        raise ValueError("q must be contiguous, and the numbers of a head side by side in the pages")
    is_int8 = k_pages.dtype == torch.int8
    out = torch.empty_like(q)
    window = UNLIMITED if shape.window is None else shape.window
    numbers = (k_pages.shape[1], window, dim**-0.5 * LOG2_E, *k_pages.stride()[:3], *v_pages.stride()[:3])
    width = max(MIN_DOT, triton.next_power_of_2(dim))
    constants = {
        "GROUP": shape.group_size, "PACKED": plan.packed_heads, "DIM": dim,
        "WIDTH": width, "SPLIT": SPLIT, "BLOCK": BLOCK, "INT8": is_int8,
        "OPERAND": operand_format(q.dtype if is_int8 else k_pages.dtype),
    }  # fmt: skip
    if num_tiles := plan.tiles.shape[1]:
        is_high = plan.tile_rows > TILE_ROWS
        _attend_tile[(num_tiles, kv_heads)](
            q, k_pages, v_pages, plan.tiles, num_tiles, out, kv_heads, *numbers, **constants,
            TILE=plan.tile_length, num_warps=(1 + is_high) * TILE_WARPS,
            num_stages=HIGH_STAGES if is_high else STAGES,
        )  # fmt: skip
    if num_singles := plan.singles.shape[1]:
        num_splits = triton.cdiv(plan.max_length, SPLIT)
        part_out = torch.empty(num_singles, heads, num_splits, dim, dtype=torch.float32, device=q.device)
        part_best, part_total = torch.empty(
            2, num_singles, heads, num_splits, dtype=torch.float32, device=q.device
        )
        _attend_single[(num_singles, kv_heads, num_splits)](
            q, k_pages, v_pages, plan.singles, num_singles, part_out, part_best, part_total, num_splits,
            kv_heads, *numbers, **constants, TILE=max(1, TILE_ROWS // plan.packed_heads),
            num_warps=TILE_WARPS,
        )  # fmt: skip
        _join_single[(num_singles, heads)](
            part_out, part_best, part_total, plan.singles, num_singles, out, num_splits, heads, window,
            DIM=dim, WIDTH=width, SPLIT=SPLIT,
        )  # fmt: skip
    return out


def verify_tile_rows(
    shape: AttentionShape, dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device
) -> int:
    """How many queries a tile of a prompt may have: HIGH_TILE_ROWS if they give the bits of TILE_ROWS, here.

    Args:
        shape: whose heads are looked at for one key-value head; programs have no other.
        dtype: of queries.
        kv_dtype: of keys and values.
        device: that computes.
    """
    one = AttentionShape(shape.group_size, 1, shape.head_dim, shape.window)
    start, num_tokens = SPLIT - 5, HIGH_TILE_ROWS // triton.next_power_of_2(shape.group_size) + 11
    generator = torch.Generator().manual_seed(shape.head_dim)
    # a page for all of it; in int8 with room for the scales
    num_rows = start + num_tokens
    size = (1, num_rows, 1, shape.head_dim)
    pages = []
    for _ in range(2):
        numbers = torch.randn(size, generator=generator)
        if kv_dtype == torch.int8:
            stride = num_rows * (shape.head_dim + SCALE_BYTES)
            page = torch.zeros(stride, dtype=torch.int8, device=device).as_strided(
                size, (stride, shape.head_dim, shape.head_dim, 1)
            )
            scales_of(page).fill_(1 / 32)
            page.copy_((numbers * 32).round().clamp(-127, 127))
            pages.append(page)
        else:
            pages.append(numbers.to(device, kv_dtype))
    q = torch.randn(num_tokens, shape.group_size, shape.head_dim, generator=generator).to(device, dtype)
    span = Span(0, start, num_tokens, (0,))
    low, high = (
        attention(q, pages[0], pages[1], plan_attention([span], one, device, rows))
        for rows in (TILE_ROWS, HIGH_TILE_ROWS)
    )
    return HIGH_TILE_ROWS if torch.equal(low, high) else TILE_ROWS


def reference_attention(
    q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, rows: list[tuple[int, int, int]],
    shape: AttentionShape,
) -> torch.Tensor:  # fmt: skip
    """The same in plain torch, one softmax a token; rows are (first page, start, number of tokens)."""
    if k_pages.dtype == torch.int8:
        k_pages, v_pages = (pages * scales_of(pages)[..., None] for pages in (k_pages, v_pages))
    out, token = torch.empty_like(q), 0
    for page, start, num_tokens in rows:
        for end in range(start + 1, start + num_tokens + 1):
            first = 0 if shape.window is None else max(0, end - shape.window)
            k, v = (pages[page:].float().flatten(0, 1)[first:end] for pages in (k_pages, v_pages))
            grouped = q[token].float().view(shape.num_kv_heads, -1, shape.head_dim)
            weights = torch.softmax(torch.einsum("hgd,thd->hgt", grouped, k) * shape.head_dim**-0.5, dim=-1)
            out[token] = torch.einsum("hgt,thd->hgd", weights, v).reshape(-1, shape.head_dim).to(q.dtype)
            token += 1
    return out
