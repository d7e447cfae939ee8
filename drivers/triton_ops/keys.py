"""Numbers as integers of the same order, whose digits a search can go by."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["LOWEST", "to_keys"]

LOWEST = tl.constexpr(-(1 << 63))
HIGHEST = tl.constexpr((1 << 63) - 1)


@triton.jit
def to_keys(values, WIDE: tl.constexpr):
    """Integers in the order of values: of fp32 0 to 2^32 - 1, of fp64 above LOWEST."""
    values += 0.0  # -0 becomes 0: they are equal
    if WIDE:
        bits = values.to(tl.int64, bitcast=True)
        keys = tl.where(bits >= 0, bits, bits ^ HIGHEST)
    else:
        bits = values.to(tl.int32, bitcast=True).to(tl.int64)
        keys = tl.where(bits >= 0, bits + 2147483648, 2147483647 - (bits & 2147483647))
    return keys
