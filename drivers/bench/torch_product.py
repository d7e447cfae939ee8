"""Torch's products of the same numbers, for ours to be measured beside."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from drivers.bench.gemm import MAX_OPERATIONS
from native.gemm import WeightFormat

__all__ = ["TorchProduct"]


class TorchProduct:
    """torch.mm in fp32, or torch._int_mm, which stops at the int32 sums: it applies no scales.

    Args:
        weight_format: FP32, or W8A8.
        n: outputs.
        k: inputs.
        total_bytes: so many copies of the weights, at least one, that together exceed the caches.
    """

    def __init__(self, weight_format: WeightFormat, n: int, k: int, total_bytes: int) -> None:
        is_integer = weight_format is WeightFormat.W8A8
        self.name = "torch._int_mm" if is_integer else "torch.mm"
        self._multiply: Callable[..., torch.Tensor] = torch._int_mm if is_integer else torch.mm
        self._dtype = torch.int8 if is_integer else torch.float32
        self._n, self._k = n, k
        first = self._random(n)
        num_copies = max(1, total_bytes // (first.numel() * first.itemsize))
        self._weights = [first.clone().t() for _ in range(num_copies)]

    def _random(self, num_rows: int) -> torch.Tensor:
        numbers = np.random.default_rng(0).integers(-127, 128, (num_rows, self._k), dtype=np.int8)
        return torch.from_numpy(numbers).to(self._dtype)

    def seconds(self, num_rows: int, num_threads: int) -> float:
        """Time of one product, each copy of the weights in turn."""
        torch.set_num_threads(num_threads)
        x = self._random(num_rows)
        operations = 2 * num_rows * self._n * self._k
        weights = self._weights[: max(1, MAX_OPERATIONS * num_threads // operations)]
        self._multiply(x, weights[-1])  # torch prepares something for each new shape
        began = time.perf_counter()
        for weight in weights:
            self._multiply(x, weight)
        return (time.perf_counter() - began) / len(weights)
