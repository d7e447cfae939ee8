"""Random weights of each number format, on the device."""

from __future__ import annotations

import torch

from drivers.ops.int8 import GROUP, Int4Weight, Int8Weight, Weight

__all__ = ["random_weight"]


def random_weight(
    size_out: int, size_in: int, dtype: torch.dtype, device: torch.device, name: str = ""
) -> Weight:
    """A linear layer's weights; what comes out is about as large as what goes in.

    Args:
        size_out: rows.
        size_in: columns.
        dtype: that products are rounded to.
        device: where they lie.
        name: "w8a8" or "w4a8"; else they are in `dtype`.
    """
    if name not in ("w8a8", "w4a8"):
        return torch.empty(size_out, size_in, dtype=dtype, device=device).normal_(std=size_in**-0.5)
    scale = torch.full((size_out,), size_in**-0.5 / 73, device=device)  # of integers that are evenly spread
    if name == "w8a8":
        values = torch.randint(-127, 128, (size_out, size_in), dtype=torch.int8, device=device)
        return Int8Weight(values, scale, dtype)
    num_groups = -(-size_in // GROUP)
    codes = torch.randint(0, 256, (size_out, num_groups * GROUP // 2), dtype=torch.uint8, device=device)
    step, offset = (
        torch.full((size_out, num_groups), number, dtype=torch.uint8, device=device) for number in (16, 8)
    )
    return Int4Weight(codes, step, offset, scale, dtype, size_in)
