"""Torch's products and attention over the same shapes, for ours to be measured beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from drivers.bench.gemm import MAX_OPERATIONS
from native.pack import WeightFormat

__all__ = ["TorchAttention", "TorchProduct"]


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
        x = self._random(num_rows)
        operations = 2 * num_rows * self._n * self._k
        weights = self._weights[: max(1, MAX_OPERATIONS * num_threads // operations)]
        return _mean_seconds([partial(self._multiply, x, weight) for weight in weights], num_threads)


class TorchAttention:
    """scaled_dot_product_attention in fp32, over keys and values of several layers.

    Args:
        shape: query heads, kv heads, dimension.
        num_positions: keys.
        total_bytes: of keys and values in all layers together; there is at least one.
    """

    name = "torch SDPA fp32"

    def __init__(self, shape: tuple[int, int, int], num_positions: int, total_bytes: int) -> None:
        self._num_heads, num_kv_heads, self._head_dim = shape
        size = (1, num_kv_heads, num_positions, self._head_dim)
        num_layers = max(1, total_bytes // (8 * num_kv_heads * num_positions * self._head_dim))
        generator = torch.Generator().manual_seed(0)
        first = [torch.randn(size, generator=generator) for _ in "kv"]
        self._layers = [(first[0].clone(), first[1].clone()) for _ in range(num_layers)]

    def seconds(self, num_tokens: int, num_threads: int) -> float:
        """Time of one layer: a lone query behind all keys, or as many queries as there are keys, causal.

        Args:
            num_tokens: 1, or `num_positions`.
            num_threads: that share the work.
        """
        q = torch.randn(
            (1, self._num_heads, num_tokens, self._head_dim), generator=torch.Generator().manual_seed(1)
        )
        attend = torch.nn.functional.scaled_dot_product_attention

        def call(k: torch.Tensor, v: torch.Tensor) -> Callable[[], torch.Tensor]:
            return lambda: attend(q, k, v, is_causal=num_tokens > 1, enable_gqa=True)

        return _mean_seconds([call(*layer) for layer in self._layers], num_threads)


def _mean_seconds(calls: list[Callable[[], object]], num_threads: int) -> float:
    """Of calls one after the other; the last one was made before, as torch prepares for each new shape."""
    torch.set_num_threads(num_threads)
    calls[-1]()
    began = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - began) / len(calls)
