"""In which number format the two sides of a product go to the device's matrix units."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from triton import knobs

__all__ = ["INTERPRETED", "MIN_DOT", "operand_format"]

INTERPRETED: bool = knobs.runtime.interpret  # as it was when the kernels were decorated
MIN_DOT = 16  # the least size of a side of tl.dot

FORMATS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def operand_format(dtype: torch.dtype) -> Any:
    """That of the weights, keys and values; the interpreter cannot multiply bf16, and gets fp32 instead."""
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else FORMATS[dtype]
