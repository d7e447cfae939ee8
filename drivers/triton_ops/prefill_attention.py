"""Causal attention of chunks of prompts over virtually contiguous keys: ragged, in tiles at fixed positions.

A program takes TILE queries of one row and one query head. Tiles begin at multiples of TILE, keys are summed
in blocks that begin at multiples of BLOCK, from position 0 on. A key that a query cannot see adds exactly
nothing, so a position's bits are the same in whatever chunk it arrives, and beside whatever rows.

Source: Dao et al. 2022, "FlashAttention", arXiv:2205.14135.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["TILE", "prefill_attention", "reference_prefill_attention"]

TILE = 16  # queries
BLOCK = 64  # keys at once; a constant, because it is part of the order of summation
MIN_DOT = 16  # the least size of a side of tl.dot


@triton.jit
def _attend_tile(
    q, k_pages, v_pages, first_pages, starts, offsets, out, num_heads, group, tokens_per_page, scale,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    start, offset = tl.load(starts + row), tl.load(offsets + row)
    length = start + tl.load(offsets + row + 1) - offset
    tile = start // TILE + tl.program_id(2)
    if tile * TILE < length:
        first_page = tl.load(first_pages + row)
        positions = tile * TILE + tl.arange(0, TILE)
        at = tl.arange(0, WIDTH)
        real = ((positions >= start) & (positions < length))[:, None] & (at < DIM)[None, :]
        q_at = ((offset + positions - start) * num_heads + head)[:, None] * DIM + at[None, :]
        queries = tl.load(q + q_at, mask=real, other=0.0).to(tl.float32) * scale
        best = tl.full((TILE,), -float("inf"), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        weighted = tl.zeros((TILE, WIDTH), tl.float32)
        kv_head = head // group
        for begin in range(0, tl.minimum(length, (tile + 1) * TILE), BLOCK):
            keys = begin + tl.arange(0, BLOCK)
            page, slot = first_page + keys // tokens_per_page, keys % tokens_per_page
            # what lies past the end was never written by this row: it is not even read
            there = (keys < length)[:, None] & (at < DIM)[None, :]
            k_at = page * k_page_stride + slot * k_slot_stride + kv_head * k_head_stride
            k = tl.load(k_pages + k_at[:, None] + at[None, :], mask=there, other=0.0).to(tl.float32)
            v_at = page * v_page_stride + slot * v_slot_stride + kv_head * v_head_stride
            v = tl.load(v_pages + v_at[:, None] + at[None, :], mask=there, other=0.0).to(tl.float32)
            scores = tl.dot(queries, tl.trans(k), input_precision="ieee")
            scores = tl.where(keys[None, :] <= positions[:, None], scores, -float("inf"))
            new_best = tl.maximum(best, tl.max(scores, axis=1))  # finite: every query sees position 0
            carry = tl.exp(best - new_best)
            weights = tl.exp(scores - new_best[:, None])
            total = total * carry + tl.sum(weights, axis=1)
            weighted = weighted * carry[:, None] + tl.dot(weights, v, input_precision="ieee")
            best = new_best
        tl.store(out + q_at, weighted / total[:, None], mask=real)


def prefill_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    first_pages: torch.Tensor,
    starts: torch.Tensor,
    offsets: torch.Tensor,
    max_chunk: int,
) -> torch.Tensor:
    """Attention of each token over its row's keys up to its own position.

    Args:
        q: [num_tokens, num_heads, head_dim], rotated, contiguous; the rows' chunks one after another.
        k_pages: one layer's keys [num_pages, tokens_per_page, num_kv_heads, head_dim], any strides but 1 for
            the last; the chunks' own keys are written. Slots past a row's end may hold anything.
        v_pages: one layer's values, likewise.
        first_pages: [num_rows] int64, the page of position 0 of each row; a row's pages are consecutive.
        starts: [num_rows] int64, the position of each chunk's first token.
        offsets: [num_rows + 1] int64, where each chunk begins in q; the last is num_tokens.
        max_chunk: no chunk is longer. It sets the size of the grid and changes no bit of a result.

    Returns:
        [num_tokens, num_heads, head_dim] in q's number format; computed in fp32.

    Raises:
        ValueError: a shape does not fit, or a tensor has the wrong strides.
    """
    _, num_heads, dim = q.shape
    (num_rows,) = first_pages.shape
    num_kv_heads = k_pages.shape[2]
    if k_pages.shape != v_pages.shape or k_pages.shape[3] != dim or num_heads % num_kv_heads:
        raise ValueError(f"q {list(q.shape)}, k {list(k_pages.shape)}, v {list(v_pages.shape)}")
    if starts.shape != (num_rows,) or offsets.shape != (num_rows + 1,) or max_chunk < 1:
        raise ValueError(f"{num_rows} rows, but starts {list(starts.shape)}, offsets {list(offsets.shape)}")
    if not q.is_contiguous() or k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        raise ValueError("q must be contiguous, and the numbers of a head side by side in the pages")
    out = torch.empty_like(q)
    if q.numel():
        # one tile more: a chunk may begin and end inside a tile
        _attend_tile[(num_rows, num_heads, triton.cdiv(max_chunk, TILE) + 1)](
            q, k_pages, v_pages, first_pages, starts, offsets, out,
            num_heads, num_heads // num_kv_heads, k_pages.shape[1], dim**-0.5,
            *k_pages.stride()[:3], *v_pages.stride()[:3],
            DIM=dim, WIDTH=max(MIN_DOT, triton.next_power_of_2(dim)), TILE=TILE, BLOCK=BLOCK,
        )  # fmt: skip
    return out


def reference_prefill_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    first_pages: torch.Tensor,
    starts: torch.Tensor,
    offsets: torch.Tensor,
) -> torch.Tensor:
    """The same in plain torch: one softmax a token."""
    out = torch.empty_like(q)
    num_kv_heads, dim = k_pages.shape[2:]
    for row, (first, start) in enumerate(zip(first_pages.tolist(), starts.tolist(), strict=True)):
        for token in range(int(offsets[row]), int(offsets[row + 1])):
            length = start + token - int(offsets[row]) + 1
            k = k_pages[first:].float().flatten(0, 1)[:length]
            v = v_pages[first:].float().flatten(0, 1)[:length]
            grouped = q[token].float().view(num_kv_heads, -1, dim)
            weights = torch.softmax(torch.einsum("hgd,thd->hgt", grouped, k) * dim**-0.5, dim=-1)
            out[token] = torch.einsum("hgt,thd->hgd", weights, v).reshape(-1, dim).to(q.dtype)
    return out
