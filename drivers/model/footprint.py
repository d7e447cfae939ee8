"""How much memory a model's weights take."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch

from native.pack import PackedWeight

__all__ = ["count_bytes"]


def count_bytes(weights: object) -> int:
    """Bytes of all arrays and tensors in a nest of attrs classes and tuples; what is there twice counts once.

    Mapped files count as well: they are read in every step.
    """
    sizes: dict[int, int] = {}  # by address
    stack: list[Any] = [weights]
    while stack:
        match stack.pop():
            case torch.Tensor() as tensor:
                sizes[tensor.data_ptr()] = tensor.nbytes
            case np.ndarray() as array:
                sizes[array.ctypes.data] = array.nbytes
            case PackedWeight() as packed:
                stack += [packed.data, packed.scale, packed.bias]
            case tuple() as several:
                stack += several
            case part if attrs.has(type(part)):
                stack += [getattr(part, name) for name in attrs.fields_dict(type(part))]
    return sum(sizes.values())
