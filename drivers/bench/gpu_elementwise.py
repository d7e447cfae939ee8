"""Kernels between products, which memory limits: norm with residual, rope and KV write, SiLU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured
from drivers.ops.batch import ContiguousPages, build_batch
from drivers.ops.interface import Angles
from drivers.ops.kv_pages import LayerPages
from drivers.triton_ops.ops import TritonOps
from llmos.device import Row

__all__ = ["TOKENS_PER_PAGE", "measure_elementwise", "random_pages"]

TOKENS_PER_PAGE = 32
EPSILON = 1e-5


def random_pages(setup: Setup, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one layer."""
    config, num_pages = setup.sizes.model, -(-num_tokens // TOKENS_PER_PAGE)
    size = (num_pages, TOKENS_PER_PAGE, config.num_kv_heads, config.head_dim)
    k, v = (torch.empty(size, dtype=setup.sizes.dtype, device=setup.device).normal_() for _ in range(2))
    return k, v


def measure_elementwise(setup: Setup, rows: int) -> Iterator[Measured]:
    """Each of them on so many tokens, against what they read and write."""
    ops = TritonOps()
    for name, make in (("RMSNorm and residual", _norm), ("rope and KV write", _rope), ("SiLU·mul", _silu)):
        case = f"kernels: {name}, {rows} tokens"
        if setup.has_time(case):
            work, num_bytes = make(setup, ops, rows)
            yield setup.against_bandwidth(case, setup.seconds(work), num_bytes)


Work = tuple[Callable[[], object], int]  # and the bytes that it moves


def _random(setup: Setup, *size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=setup.sizes.dtype, device=setup.device)


def _norm(setup: Setup, ops: TritonOps, rows: int) -> Work:
    size = setup.sizes.model.hidden_size
    x, residual, weight = _random(setup, rows, size), _random(setup, rows, size), _random(setup, size)
    return lambda: ops.add_rms_norm(x, residual, weight, EPSILON), 4 * x.nbytes + weight.nbytes


def _rope(setup: Setup, ops: TritonOps, rows: int) -> Work:
    config = setup.sizes.model
    qkv = _random(setup, rows, config.num_heads + 2 * config.num_kv_heads, config.head_dim)
    cos, sin = (torch.rand(rows, config.head_dim // 2, device=setup.device) for _ in range(2))
    kv = LayerPages(*random_pages(setup, rows))
    batch = build_batch(
        [Row(0, 0, (0,) * rows, True)], ContiguousPages(len(kv.keys)), TOKENS_PER_PAGE, setup.device
    )
    return lambda: ops.rope_write_kv(qkv, None, Angles(cos, sin), kv, batch), 2 * qkv.nbytes + 2 * cos.nbytes


def _silu(setup: Setup, ops: TritonOps, rows: int) -> Work:
    gate_up = _random(setup, rows, 2 * setup.sizes.model.intermediate_size)
    return lambda: ops.silu_mul(gate_up), gate_up.nbytes * 3 // 2
