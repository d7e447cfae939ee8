"""Attention of one new token a row over virtually contiguous keys, split at fixed absolute positions.

A program takes one row, one key-value head with all query heads of its group, and one split of SPLIT keys.
Splits begin at multiples of SPLIT and are summed in blocks that begin at multiples of BLOCK, whatever else
is in the batch; a second kernel joins a row's splits in the order of positions. So a row's bits depend on the
row alone. A split past a row's end does nothing and is never read.

Source: Dao et al. 2023, "Flash-Decoding"; Milakov and Gimelshein 2018, "Online normalizer calculation".
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["SPLIT", "decode_attention", "reference_decode_attention"]

SPLIT = 256  # keys a program reads; a constant, because it is part of the order of summation
BLOCK = 64  # keys at once; likewise
MIN_DOT = 16  # the least size of a side of tl.dot


# the compiler must not make other code for another number of splits: that number comes from the whole batch
@triton.jit(do_not_specialize=["num_splits"])
def _attend_split(
    q, k_pages, v_pages, first_pages, lengths, part_out, part_best, part_sum,
    num_heads, num_splits, tokens_per_page, scale,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + row)
    if split * SPLIT < length:
        first_page = tl.load(first_pages + row)
        of_group = tl.arange(0, ROWS)
        heads = row * num_heads + kv_head * GROUP + of_group
        at = tl.arange(0, WIDTH)
        real = (of_group < GROUP)[:, None] & (at < DIM)[None, :]
        queries = tl.load(q + heads[:, None] * DIM + at[None, :], mask=real, other=0.0).to(tl.float32) * scale
        best = tl.full((ROWS,), -float("inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        weighted = tl.zeros((ROWS, WIDTH), tl.float32)
        end = tl.minimum(length, (split + 1) * SPLIT)
        for begin in range(split * SPLIT, end, BLOCK):
            keys = begin + tl.arange(0, BLOCK)
            seen = keys < length
            page, slot = first_page + keys // tokens_per_page, keys % tokens_per_page
            # what lies past the end was never written by this row: it is not even read
            there = seen[:, None] & (at < DIM)[None, :]
            k_at = page * k_page_stride + slot * k_slot_stride + kv_head * k_head_stride
            k = tl.load(k_pages + k_at[:, None] + at[None, :], mask=there, other=0.0).to(tl.float32)
            v_at = page * v_page_stride + slot * v_slot_stride + kv_head * v_head_stride
            v = tl.load(v_pages + v_at[:, None] + at[None, :], mask=there, other=0.0).to(tl.float32)
            scores = tl.dot(queries, tl.trans(k), input_precision="ieee")
            scores = tl.where(seen[None, :], scores, -float("inf"))
            new_best = tl.maximum(best, tl.max(scores, axis=1))  # finite: a block has a key that is seen
            carry = tl.exp(best - new_best)
            weights = tl.exp(scores - new_best[:, None])
            total = total * carry + tl.sum(weights, axis=1)
            weighted = weighted * carry[:, None] + tl.dot(weights, v, input_precision="ieee")
            best = new_best
        part = heads * num_splits + split
        tl.store(part_best + part, best, mask=of_group < GROUP)
        tl.store(part_sum + part, total, mask=of_group < GROUP)
        tl.store(part_out + part[:, None] * DIM + at[None, :], weighted, mask=real)


@triton.jit(do_not_specialize=["num_splits"])
def _join_splits(
    part_out, part_best, part_sum, lengths, out, num_heads, num_splits,
    DIM: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = row * num_heads + tl.program_id(1)
    at = tl.arange(0, WIDTH)
    inside = at < DIM
    length = tl.load(lengths + row)
    part = head * num_splits
    best = tl.load(part_best + part)
    total = tl.load(part_sum + part)
    weighted = tl.load(part_out + part * DIM + at, mask=inside, other=0.0)
    for split in range(1, tl.cdiv(length, SPLIT)):
        split_best = tl.load(part_best + part + split)
        new_best = tl.maximum(best, split_best)
        carry, scale = tl.exp(best - new_best), tl.exp(split_best - new_best)
        total = total * carry + tl.load(part_sum + part + split) * scale
        added = tl.load(part_out + (part + split) * DIM + at, mask=inside, other=0.0)
        weighted = weighted * carry + added * scale
        best = new_best
    tl.store(out + head * DIM + at, weighted / total, mask=inside)


def decode_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    first_pages: torch.Tensor,
    lengths: torch.Tensor,
    max_length: int,
) -> torch.Tensor:
    """Attention of each row's last token over all of the row's keys.

    Args:
        q: [num_rows, num_heads, head_dim], rotated, contiguous.
        k_pages: one layer's keys [num_pages, tokens_per_page, num_kv_heads, head_dim], any strides but 1 for
            the last; the new tokens' own keys are written. Slots past a row's end may hold anything.
        v_pages: one layer's values, likewise.
        first_pages: [num_rows] int64, the page of position 0 of each row; a row's pages are consecutive.
        lengths: [num_rows] int64, keys of each row, its new token's included; at least 1.
        max_length: no length is larger. It sets the size of the grid and changes no bit of a result.

    Returns:
        [num_rows, num_heads, head_dim] in q's number format; computed in fp32.

    Raises:
        ValueError: a shape does not fit, or a tensor has the wrong strides.
    """
    num_rows, num_heads, dim = q.shape
    num_kv_heads = k_pages.shape[2]
    if k_pages.shape != v_pages.shape or k_pages.shape[3] != dim or num_heads % num_kv_heads:
        raise ValueError(f"q {list(q.shape)}, k {list(k_pages.shape)}, v {list(v_pages.shape)}")
    if first_pages.shape != (num_rows,) or lengths.shape != (num_rows,) or max_length < 1:
        raise ValueError(f"{num_rows} rows, but first_pages {list(first_pages.shape)}, {max_length=}")
    if not q.is_contiguous() or k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        raise ValueError("q must be contiguous, and the numbers of a head side by side in the pages")
    out = torch.empty_like(q)
    if not num_rows:
        return out
    group, num_splits = num_heads // num_kv_heads, triton.cdiv(max_length, SPLIT)
    width = max(MIN_DOT, triton.next_power_of_2(dim))
    part_out = torch.empty(num_rows, num_heads, num_splits, dim, dtype=torch.float32, device=q.device)
    part_best, part_sum = torch.empty(
        2, num_rows, num_heads, num_splits, dtype=torch.float32, device=q.device
    )
    _attend_split[(num_rows, num_kv_heads, num_splits)](
        q, k_pages, v_pages, first_pages, lengths, part_out, part_best, part_sum,
        num_heads, num_splits, k_pages.shape[1], dim**-0.5, *k_pages.stride()[:3], *v_pages.stride()[:3],
        GROUP=group, DIM=dim, ROWS=max(MIN_DOT, triton.next_power_of_2(group)), WIDTH=width,
        SPLIT=SPLIT, BLOCK=BLOCK,
    )  # fmt: skip
    _join_splits[(num_rows, num_heads)](
        part_out, part_best, part_sum, lengths, out, num_heads, num_splits,
        DIM=dim, WIDTH=width, SPLIT=SPLIT,
    )  # fmt: skip
    return out


def reference_decode_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    first_pages: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """The same in plain torch: one softmax a row."""
    tokens_per_page, num_kv_heads, dim = k_pages.shape[1:]
    rows = []
    for query, first, length in zip(q.float(), first_pages.tolist(), lengths.tolist(), strict=True):
        last = first + (length - 1) // tokens_per_page + 1
        k = k_pages[first:last].float().flatten(0, 1)[:length]
        v = v_pages[first:last].float().flatten(0, 1)[:length]
        grouped = query.view(num_kv_heads, -1, dim)
        weights = torch.softmax(torch.einsum("hgd,thd->hgt", grouped, k) * dim**-0.5, dim=-1)
        rows.append(torch.einsum("hgt,thd->hgd", weights, v).reshape(-1, dim))
    return torch.stack(rows).to(q.dtype)
