"""Rotate queries and keys, and write keys and values where they belong: a program a token and head.

A row's pages are consecutive in its address space, so the page of a position is its row's first page plus
position // tokens_per_page: no table is read.

Source: Su et al. 2021, "RoFormer", arXiv:2104.09864; Prabhu et al. 2024, "vAttention", arXiv:2405.04437.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["reference_rope_write_kv", "rope_write_kv"]


@triton.jit
def _rope_write_kv(
    q, k, v, cos, sin, first_pages, positions, q_out, k_pages, v_pages,
    num_heads, num_kv_heads, tokens_per_page,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < HALF
    c = tl.load(cos + token * HALF + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + token * HALF + at, mask=inside, other=0.0).to(tl.float32)
    if head < num_heads:
        row = (token * num_heads + head) * 2 * HALF
        first = tl.load(q + row + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(q + row + HALF + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(q_out + row + at, first * c - second * s, mask=inside)
        tl.store(q_out + row + HALF + at, second * c + first * s, mask=inside)
    else:
        kv_head = head - num_heads
        row = (token * num_kv_heads + kv_head) * 2 * HALF
        position = tl.load(positions + token)
        page = tl.load(first_pages + token) + position // tokens_per_page
        slot = position % tokens_per_page
        k_at = k_pages + page * k_page_stride + slot * k_slot_stride + kv_head * k_head_stride + at
        v_at = v_pages + page * v_page_stride + slot * v_slot_stride + kv_head * v_head_stride + at
        first = tl.load(k + row + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(k + row + HALF + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(k_at, first * c - second * s, mask=inside)
        tl.store(k_at + HALF, second * c + first * s, mask=inside)
        first = tl.load(v + row + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(v + row + HALF + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(v_at, first, mask=inside)
        tl.store(v_at + HALF, second, mask=inside)


def rope_write_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    first_pages: torch.Tensor,
    positions: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
) -> torch.Tensor:
    """Rotate q and k by halves; store k and v at each token's page and slot.

    Args:
        q: [num_tokens, num_heads, head_dim], contiguous like every argument but the pages.
        k: [num_tokens, num_kv_heads, head_dim].
        v: likewise.
        cos: [num_tokens, head_dim / 2]; sin likewise.
        sin: see cos.
        first_pages: [num_tokens] int64, the page of position 0 of each token's row.
        positions: [num_tokens] int64.
        k_pages: one layer's keys [num_pages, tokens_per_page, num_kv_heads, head_dim], any strides but 1 for
            the last. This operation changes them.
        v_pages: one layer's values, likewise.

    Returns:
        The rotated queries, in q's shape and number format; computed in fp32.

    Raises:
        ValueError: head_dim is odd, a shape does not fit, or a tensor has the wrong strides.
    """
    num_tokens, num_heads, dim = q.shape
    num_kv_heads = k.shape[1]
    fits = k.shape == v.shape == (num_tokens, num_kv_heads, dim) and dim % 2 == 0
    fits = fits and cos.shape == sin.shape == (num_tokens, dim // 2)
    fits = fits and first_pages.shape == positions.shape == (num_tokens,)
    fits = fits and k_pages.shape == v_pages.shape and k_pages.shape[2:] == k.shape[1:]
    if not fits:
        raise ValueError(f"q {list(q.shape)}, k {list(k.shape)}, pages {list(k_pages.shape)}")
    if not all(x.is_contiguous() for x in (q, k, v, cos, sin, first_pages, positions)):
        raise ValueError("all tensors but the pages must be contiguous")
    if k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        raise ValueError("the numbers of a head must lie side by side in the pages")
    out = torch.empty_like(q)
    if num_tokens:
        half = dim // 2
        _rope_write_kv[(num_tokens, num_heads + num_kv_heads)](
            q, k, v, cos, sin, first_pages, positions, out, k_pages, v_pages,
            num_heads, num_kv_heads, k_pages.shape[1], *k_pages.stride()[:3], *v_pages.stride()[:3],
            HALF=half, BLOCK=triton.next_power_of_2(half),
        )  # fmt: skip
    return out


def reference_rope_write_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    first_pages: torch.Tensor,
    positions: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
) -> torch.Tensor:
    """The same in plain torch."""

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.float().chunk(2, dim=-1)
        c, s = cos[:, None].float(), sin[:, None].float()
        return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x.dtype)

    tokens_per_page = k_pages.shape[1]
    pages, slots = first_pages + positions // tokens_per_page, positions % tokens_per_page
    k_pages[pages, slots] = rotate(k).to(k_pages.dtype)
    v_pages[pages, slots] = v.to(v_pages.dtype)
    return rotate(q)
