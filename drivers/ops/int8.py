"""Numbers in 8 bits: weights, activations, keys and values; rounded as on the processor, to the bit.

A row has one scale: a = max |x|, q = round half to even(x * (127 / a)), scale = a / 127, each operation
rounded once, in fp32. A row of zeros has q = 0 and scale 0; one with an infinity or NaN has a scale that is
not finite, and integers that mean nothing. Of weights and activations rows are rows; of keys and values a row
is one head of one token.

Sources: Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339; Xiao et al. 2023, "SmoothQuant",
arXiv:2211.10438 (W8A8).
"""

from __future__ import annotations

import torch
from attrs import frozen

__all__ = [
    "GROUP",
    "Activations",
    "Int4Weight",
    "Int8Rows",
    "Int8Weight",
    "Weight",
    "linear_int8",
    "round_rows",
    "scales_of",
]

SCALE_BYTES = 4  # fp32
GROUP = 128  # inputs that share a second-level scale in W4A8
# float64 holds every sum of products of 8 bits up to 2^39 of them
EXACT = torch.float64


@frozen(eq=False)
class Int8Weight:
    """A linear layer's weights in W8A8."""

    values: torch.Tensor  # [out, in] int8, contiguous
    scale: torch.Tensor  # [out] fp32
    dtype: torch.dtype  # that its products are rounded to


@frozen(eq=False)
class Int8Rows:
    """Activations, each token's rounded by a scale of its own."""

    values: torch.Tensor  # [num_tokens, size] int8, contiguous
    scale: torch.Tensor  # [num_tokens] fp32


@frozen(eq=False)
class Int4Weight:
    """A linear layer's weights in W4A8: the integers of 8 bits are code * group's scale + its offset - 128.

    Source: Lin et al. 2024, "QServe", arXiv:2405.04532, progressive quantisation.
    """

    codes: torch.Tensor  # [out, groups * 64] uint8: a byte holds inputs j (low half) and j + 64 of its group
    group_scale: torch.Tensor  # [out, groups] uint8
    group_offset: torch.Tensor  # [out, groups] uint8
    scale: torch.Tensor  # [out] fp32
    dtype: torch.dtype  # that its products are rounded to
    size_in: int

    @property
    def values(self) -> torch.Tensor:
        """The integers, [out, in] int8."""
        by_group = self.codes.unflatten(1, (-1, GROUP // 2))
        wide = torch.cat((by_group & 15, by_group >> 4), dim=2).int()
        wide = wide * self.group_scale[..., None].int() + self.group_offset[..., None].int() - 128
        return wide.flatten(1)[:, : self.size_in].to(torch.int8)


Activations = torch.Tensor | Int8Rows
Weight = torch.Tensor | Int8Weight | Int4Weight


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round the last dimension: [..., size], fp32 -> int8 [..., size] and scales [...], fp32."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 0.0, 127.0 / largest, 0.0)
    numbers = (x * inverse).nan_to_num(0.0).clamp(-127.0, 127.0).round()
    return numbers.to(torch.int8), (largest / 127.0)[..., 0]


def linear_int8(x: Int8Rows, weight: Int8Weight | Int4Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Products of integers, exact; then in fp32 times the row's scale, times the output's, plus bias [out].

    Rounded once, to the weight's dtype: [num_tokens, in] -> [num_tokens, out].
    """
    total = (x.values.to(EXACT) @ weight.values.to(EXACT).T).float()
    out = total * x.scale[:, None] * weight.scale
    return (out if bias is None else out + bias.float()).to(weight.dtype)


def scales_of(pages: torch.Tensor) -> torch.Tensor:
    """The scales of a layer's int8 keys or values: they lie behind the layer's numbers in each page.

    Args:
        pages: a view that `kv_views` made, [num_pages, tokens_per_page, num_kv_heads, head_dim] int8.

    Returns:
        A view of the same memory, [num_pages, tokens_per_page, num_kv_heads] fp32.
    """
    num_pages, tokens, heads, dim = pages.shape
    at = pages.storage_offset() + tokens * heads * dim
    return torch.empty(0, dtype=torch.float32, device=pages.device).set_(
        pages.untyped_storage(), at // SCALE_BYTES, (num_pages, tokens, heads),
        (pages.stride(0) // SCALE_BYTES, heads, 1),
    )  # fmt: skip
