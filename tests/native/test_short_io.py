"""Vectors that the system cuts short, interrupts or refuses half-way: what was moved is not at fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("short_io.c")


def test_a_vector_fails_slot_by_slot(tmp_path: Path) -> None:
    """Every slot is whole or has its own error, in a process whose system calls do as little as they may."""
    shim = tmp_path / "libshortio.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", str(SOURCE), "-o", str(shim)]
    subprocess.run(command, check=True)
    result = subprocess.run(
        [sys.executable, "-m", "tests.native.short_io_cases"],
        capture_output=True, text=True, check=False, timeout=240, cwd=SOURCE.parents[2],
        env={**os.environ, "LD_PRELOAD": str(shim)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    num_calls, num_short, num_interrupted = (int(count) for count in result.stdout.split())
    assert min(num_short, num_interrupted, num_calls - num_short - num_interrupted) > 100
