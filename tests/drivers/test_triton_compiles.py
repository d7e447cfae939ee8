"""Every triton kernel becomes machine code for Ampere and Hopper, though no GPU is here to run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from triton_compiler import SHARED_BYTES

ROOT = Path(__file__).parents[2]
LARGE_PRODUCTS = {"80": "mma.sync", "90": "wgmma"}
MAX_STACK_BYTES = {"80": 320, "90": 128}  # spilt registers: a few, a tile of attention on Ampere some more
KERNELS = {
    "_rms_norm",
    "_silu_mul",
    "_linear",
    "_attend_tile",
    "_attend_single",
    "_join_single",
    "_rope_write_kv",
    "_count_for_surprise",
    "_cut",
    "_sample",
    "_score",
    "_tell",
    "_linear_int4",
    "_linear_int8",
    "_round_rows",
    "_silu_mul_int8",
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", sorted(LARGE_PRODUCTS))
def test_kernels_compile(tmp_path: Path, capability: str) -> None:
    """In bf16 and in 8 bits, within registers and shared memory; products go to the matrix units.

    On Hopper products spill nothing, in any tile that may be chosen.
    """
    environment = {
        **os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "tests/drivers/triton_compiler.py"), capability, "bfloat16"]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found = defaultdict(list)
    for line in told.splitlines():
        kernel = json.loads(line)
        found[kernel["kernel"]].append(kernel)
        is_product = capability == "90" and kernel["kernel"].startswith("_linear")
        assert kernel["stack_bytes"] <= (0 if is_product else MAX_STACK_BYTES[capability]), line
        assert kernel["shared_bytes"] <= SHARED_BYTES[int(capability)], line
    assert set(found) == KERNELS
    for name in ("_linear", "_linear_int4", "_linear_int8", "_attend_tile", "_attend_single"):
        assert all(kernel["products"] for kernel in found[name]), name
    # the two that must agree to the bit have products of one kind
    assert {kernel["products"] for name in ("_attend_tile", "_attend_single") for kernel in found[name]} == {
        LARGE_PRODUCTS[capability]
    }
