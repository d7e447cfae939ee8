"""Norm and rotate queries and keys, and write keys and values where they belong: a program a token and head.

Source: Su et al. 2021, "RoFormer", arXiv:2104.09864; Prabhu et al. 2024, "vAttention", arXiv:2405.04437.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivers.ops.interface import Angles, HeadNorms
from drivers.ops.kv_pages import LayerPages
from drivers.triton_ops.rounding import inverse_of, round_int8, scale_of

__all__ = ["rope_write_kv"]


@triton.jit
def _store_head(
    pages, page, slot, head, num_kv_heads, tokens_per_page, page_stride, slot_stride, head_stride,
    first, second, at, inside, INT8: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One head's key or value, of a token whose page is not below 0."""
    inside = inside & (page >= 0)
    to = pages + page * page_stride + slot * slot_stride + head * head_stride + at
    if INT8:
        is_finite = (tl.abs(first) < float("inf")) & (tl.abs(second) < float("inf"))
        magnitude = tl.maximum(tl.abs(first), tl.abs(second))
        largest = tl.max(tl.where(is_finite, magnitude, 0.0), axis=0)
        are_finite = tl.min(is_finite.to(tl.int32), axis=0) == 1
        first, second = round_int8(first, inverse_of(largest)), round_int8(second, inverse_of(largest))
        # behind the page's numbers: see drivers/ops/int8.py
        scales = tokens_per_page * num_kv_heads * 2 * HALF + 4 * (slot * num_kv_heads + head)
        scale_at = (pages + page * page_stride + scales).to(tl.pointer_type(tl.float32), bitcast=True)
        tl.store(scale_at, scale_of(largest, are_finite), mask=page >= 0)
    tl.store(to, first, mask=inside)
    tl.store(to + HALF, second, mask=inside)


@triton.jit
def _rope_write_kv(
    qkv, q_norm, k_norm, cos, sin, pages, slots, q_out, k_pages, v_pages, num_heads, num_kv_heads, epsilon,
    tokens_per_page,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    NORMED: tl.constexpr, INT8: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < HALF
    row = qkv + (token * (num_heads + 2 * num_kv_heads) + head) * 2 * HALF + at
    first = tl.load(row, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(row + HALF, mask=inside, other=0.0).to(tl.float32)
    page, slot = tl.load(pages + token), tl.load(slots + token)
    if head >= num_heads + num_kv_heads:
        kv_head = head - num_heads - num_kv_heads
        _store_head(
            v_pages, page, slot, kv_head, num_kv_heads, tokens_per_page, v_page_stride, v_slot_stride,
            v_head_stride, first, second, at, inside, INT8, HALF,
        )  # fmt: skip
    else:
        if NORMED:
            mean = (tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)) / (2 * HALF)
            root = tl.sqrt(mean + epsilon)
            norm = q_norm + at
            if head >= num_heads:
                norm = k_norm + at
            # rounded, as the interface says, before and after the product
            first = (first / root).to(qkv.dtype.element_ty).to(tl.float32)
            first *= tl.load(norm, mask=inside, other=0.0).to(tl.float32)
            first = first.to(qkv.dtype.element_ty).to(tl.float32)
            second = (second / root).to(qkv.dtype.element_ty).to(tl.float32)
            second *= tl.load(norm + HALF, mask=inside, other=0.0).to(tl.float32)
            second = second.to(qkv.dtype.element_ty).to(tl.float32)
        c = tl.load(cos + token * HALF + at, mask=inside, other=0.0)
        s = tl.load(sin + token * HALF + at, mask=inside, other=0.0)
        if head < num_heads:
            q_at = q_out + (token * num_heads + head) * 2 * HALF + at
            tl.store(q_at, first * c - second * s, mask=inside)
            tl.store(q_at + HALF, second * c + first * s, mask=inside)
        else:
            _store_head(
                k_pages, page, slot, head - num_heads, num_kv_heads, tokens_per_page, k_page_stride,
                k_slot_stride, k_head_stride, first * c - second * s, second * c + first * s, at, inside,
                INT8, HALF,
            )  # fmt: skip


def rope_write_kv(
    qkv: torch.Tensor,
    norms: HeadNorms | None,
    angles: Angles,
    kv: LayerPages,
    pages: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """See `Ops.rope_write_kv`; pages and slots are those of its batch, [num_tokens] int64.

    Raises:
        ValueError: head_dim is odd, a shape does not fit, or a tensor has the wrong strides.
    """
    cos, sin, k_pages, v_pages = angles.cos, angles.sin, kv.keys, kv.values
    num_tokens, num_rows, dim = qkv.shape
    num_kv_heads = k_pages.shape[2]
    num_heads = num_rows - 2 * num_kv_heads
    fits = cos.shape == sin.shape == (num_tokens, dim // 2) and dim % 2 == 0 and num_heads > 0
    fits = fits and pages.shape == slots.shape == (num_tokens,)
    if not fits or k_pages.shape != v_pages.shape or k_pages.shape[3] != dim:
        raise ValueError(f"qkv {list(qkv.shape)}, cos {list(cos.shape)}, pages {list(k_pages.shape)}")
    if not all(x.is_contiguous() for x in (qkv, cos, sin, pages, slots)):
        raise ValueError("all tensors but the pages of keys and values must be contiguous")
    if k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        raise ValueError("the numbers of a head must lie side by side in the pages")
    out = qkv.new_empty(num_tokens, num_heads, dim)
    if num_tokens:
        half = dim // 2
        q_norm, k_norm, epsilon = (norms.q, norms.k, norms.epsilon) if norms else (qkv, qkv, 0.0)
        _rope_write_kv[(num_tokens, num_rows)](
            qkv, q_norm, k_norm, cos, sin, pages, slots, out, k_pages, v_pages,
            num_heads, num_kv_heads, epsilon, k_pages.shape[1], *k_pages.stride()[:3], *v_pages.stride()[:3],
            NORMED=norms is not None, INT8=k_pages.dtype == torch.int8, HALF=half,
            BLOCK=triton.next_power_of_2(half),
        )  # fmt: skip
    return out
