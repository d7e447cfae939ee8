"""Compiles what the operations launch for a GPU that is not there, down to its machine code.

Run as a program, it prints a JSON line for each kernel: its name, registers a thread, bytes of stack (spilt
registers lie there) and of shared memory, and which matrix
instruction it has. The operations are called as they are; only the launch is left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from drivers.ops.batch import Span
from drivers.ops.int8 import GROUP, Int4Weight, Int8Weight
from drivers.ops.interface import Angles, AttentionShape, HeadNorms
from drivers.ops.kv_pages import LayerPages
from drivers.triton_ops.linear import linear
from drivers.triton_ops.linear_int4 import linear_int4
from drivers.triton_ops.linear_int8 import linear_int8
from drivers.triton_ops.linear_integers import list_tiles
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.plan import HIGH_TILE_ROWS, TILE_ROWS, plan_attention
from drivers.triton_ops.rope_kv import rope_write_kv
from drivers.triton_ops.tiles import KINDS, fit_tile
from native.sampling import CUT_KINDS, Cut, Draw, MirostatDraw

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # that a program can have, by compute capability
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class AbsentDevice:
    """As much of triton's driver as compiling takes."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0


def compile_only(capability: int) -> dict[str, Any]:
    """From here on launches compile and do nothing else; returns what was compiled, by name, as it grows."""
    compiled: dict[str, Any] = {}
    run = JITFunction.run

    def run_dry(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled[f"{self.__name__} {kernel.hash[:6]}"] = kernel
        return kernel

    JITFunction.run = run_dry  # type: ignore[method-assign]
    triton.runtime.driver.set_active(AbsentDevice(capability))
    return compiled


def call_everything(dtype: torch.dtype, shape: AttentionShape, shared_bytes: int) -> None:
    """Each operation once, products in every tile, in a number format."""
    hidden, heads, dim = 256, shape.num_heads, shape.head_dim
    tokens = 20
    ops = TritonOps(use_library=False)
    x, norm = torch.zeros(tokens, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
    ops.rms_norm(x, norm, 1e-5)
    ops.add_rms_norm(x, x.clone(), norm, 1e-5)
    ops.silu_mul(x)
    for tile in (tile for kind in KINDS for tile in kind):
        fitting = fit_tile(tile, dtype.itemsize, shared_bytes)
        linear(x, torch.zeros(512, hidden, dtype=dtype), norm.new_zeros(512), fitting)
    call_int8(ops, x, norm)
    pages = torch.zeros(8, 16, shape.num_kv_heads, dim, dtype=dtype)
    # one layer's int8 pages, with room for its scales
    page = 16 * shape.num_kv_heads * (dim + 4)
    int8_pages = torch.zeros(8 * page, dtype=torch.int8).as_strided(
        pages.shape, (page, shape.num_kv_heads * dim, dim, 1)
    )
    spans = [Span(0, 3, 1, (0,)), Span(1, 5, 19, (2, 3))]
    for rows in (TILE_ROWS, HIGH_TILE_ROWS):
        plan = plan_attention(spans, shape, torch.device("cpu"), rows)
        for kv in (pages, int8_pages):
            ops.attention(torch.zeros(tokens, heads, dim, dtype=dtype), LayerPages(kv, kv), plan)
    qkv = torch.zeros(tokens, heads + 2 * shape.num_kv_heads, dim, dtype=dtype)
    angle, at = torch.zeros(tokens, dim // 2), torch.zeros(tokens, dtype=torch.int64)
    head_norm = torch.zeros(dim, dtype=dtype)
    call_draws(ops)
    for norms in (None, HeadNorms(head_norm, head_norm, 1e-5)):
        for kv in (pages, int8_pages):
            rope_write_kv(qkv, norms, Angles(angle, angle), LayerPages(kv, kv), at, at)


def call_draws(ops: TritonOps) -> None:
    """Tokens by logits, and by scores with penalties and a bias."""
    some, one = np.array([3]), np.ones(1)
    scored = Draw(0.8, 0.5, top_k=9, seen_ids=some, num_output=some, bias_ids=some, bias_values=one)
    ops.draw_tokens(torch.zeros(3, 1000), [None, Draw(0.8, 0.5, top_p=0.9, banned_ids=some), scored])
    ops.draw_tokens(torch.zeros(1, 1000), [Draw(0.8, 0.5, cuts=tuple(Cut(kind, 0.5) for kind in CUT_KINDS))])
    for version in (1, 2):
        mirostat = MirostatDraw(version, 3.0, 0.1, 6.0)
        ops.draw_tokens(torch.zeros(1, 1000), [Draw(0.8, 0.5, cuts=(), mirostat=mirostat)])


def call_int8(ops: TritonOps, x: torch.Tensor, norm: torch.Tensor) -> None:
    """What W8A8 has of its own."""
    rows = ops.rms_norm_int8(x, norm, 1e-5)
    ops.add_rms_norm_int8(x, x.clone(), norm, 1e-5)
    ops.silu_mul_int8(x)
    weight = Int8Weight(torch.zeros(512, x.shape[1], dtype=torch.int8), torch.zeros(512), x.dtype)
    ops.linear(x, weight, None)
    groups = torch.zeros(512, x.shape[1] // GROUP, dtype=torch.uint8)
    halves = torch.zeros(512, x.shape[1] // 2, dtype=torch.uint8)
    codes = Int4Weight(halves, groups, groups, torch.zeros(512), x.dtype, x.shape[1])
    for tile in (tile for kind in list_tiles(is_int4=False) for tile in kind):
        linear_int8(rows, weight, torch.zeros(512), tile)
    for tile in (tile for kind in list_tiles(is_int4=True) for tile in kind):
        linear_int4(rows, codes, None, tile)


def measure(name: str, kernel: Any) -> dict[str, Any]:
    """What the machine code takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", told).groups()  # type: ignore[union-attr]
    return {
        "kernel": name.split()[0],
        "registers": int(registers),
        "stack_bytes": int(stack),
        "shared_bytes": kernel.metadata.shared,
        "num_warps": kernel.metadata.num_warps,
        "num_stages": kernel.metadata.num_stages,
        "products": next((kind for kind in ("wgmma", "mma.sync") if kind in kernel.asm["ptx"]), ""),
    }


def main() -> None:
    """Compile for one capability, 90 say, and one number format, bf16."""
    capability = int(sys.argv[1])
    compiled = compile_only(capability)
    call_everything(getattr(torch, sys.argv[2]), AttentionShape(32, 8, 128), SHARED_BYTES[capability])
    for name, kernel in compiled.items():
        print(json.dumps(measure(name, kernel)))


if __name__ == "__main__":
    main()
