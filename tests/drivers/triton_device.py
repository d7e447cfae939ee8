"""Where triton's kernels are tested: on the GPU that there is, else under the interpreter."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from quick_interpreter import hasten

__all__ = ["DEVICE", "draw"]

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if IS_INTERPRETED and find_spec("triton") is not None:
    hasten()
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")


def draw(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)
