"""`make gpu` without a GPU: every part once, tiny, under the interpreter and on the stand-in library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.bench.gpu import SECONDS
from llmos.bench import gpu
from llmos.bench.gpu import REHEARSAL, SECTIONS
from llmos.config import ConfigError
from tests.fake_cuda import load_fake

ROOT = Path(__file__).parents[2]


def bench_gpu(library: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `llmos bench gpu …`."""
    environment = os.environ | {"LLMOS_LIBCUDA": library}
    environment.pop("TRITON_INTERPRET", None)  # tests of kernels set it; served is by torch
    return subprocess.run(
        [sys.executable, "-m", "llmos.cli", "bench", "gpu", *arguments], cwd=ROOT,
        capture_output=True, text=True, timeout=900, check=False, env=environment,
    )  # fmt: skip


def test_a_rehearsal_runs_every_part() -> None:
    """It says that it measures nothing before the table and behind it, and has rows of every section."""
    result = bench_gpu(load_fake().library, "--rehearse")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == lines[-1] == REHEARSAL
    assert "left out" not in result.stderr
    for case in (
        "checks: properties and parity", "peaks: matrix product", "attention: decode, batch 2",
        "attention: prompt of 8", "kernels: product of 1 rows", "kernels: sampling",
        "step: decode, batch 2, context 16", "step: prompt of 8", "paging: map and set access",
        "swap: device to host", "swap: host to device", "serving: llmos up",
    ):  # fmt: skip
        assert case in result.stdout, case
    assert "transformers" in result.stdout


def test_without_a_gpu_it_refuses() -> None:
    """No library, or a stand-in that was not asked for: one line says so, and no table is printed."""
    for library, message in (
        ("/nowhere/libcuda.so.1", "no GPU to measure: "),
        (load_fake().library, "is a stand-in without a processor; give --rehearse"),
    ):
        result = bench_gpu(library, "--only", "peaks")
        assert result.returncode != 0
        assert message in result.stderr
        assert not result.stdout


def test_both_sides_have_the_same_sections() -> None:
    """In the same order, in less than 8 minutes; a file of a rehearsal is refused."""
    assert tuple(SECONDS) == SECTIONS
    assert sum(SECONDS.values()) < 480 - 30
    with pytest.raises(ConfigError, match="nothing to write"):
        gpu.main(only=None, is_rehearsal=True, json_path="rows.jsonl")
