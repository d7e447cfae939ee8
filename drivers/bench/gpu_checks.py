"""The tests of triton's operations, on the device: nothing is measured of what computes something else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured

__all__ = ["check_device"]

TESTS = Path(__file__).parents[2] / "tests" / "drivers"
PROPERTIES = (
    "test_triton_elementwise.py", "test_triton_linear.py", "test_triton_attention.py",
    "test_triton_sample.py",
)  # fmt: skip
WHOLE = ("test_triton_model.py", "test_step_queue.py", "test_two_steps.py")
MAX_SECONDS = 150


def check_device(setup: Setup) -> Iterator[Measured]:
    """Properties and parity with the reference, then transparency of whole steps.

    Raises:
        FileNotFoundError: this is not a checkout: tests are not shipped.
    """
    if not TESTS.is_dir():
        raise FileNotFoundError(f"{TESTS} is not there: run this in a checkout")
    groups = {"properties and parity": PROPERTIES, "transparency of steps": WHOLE}
    if not setup.is_gpu:
        groups = {"properties and parity": PROPERTIES[:1]}
    for name, files in groups.items():
        passed, failed = _run(files)
        yield Measured(
            f"checks: {name}", "passed", passed, "tests", f"{failed} failed", passed / (passed + failed), 1
        )


def _run(files: tuple[str, ...]) -> tuple[int, int]:
    """How many tests passed, and how many did not. What they print goes to standard error."""
    command = [sys.executable, "-m", "pytest", "-q", *(str(TESTS / file) for file in files)]
    try:
        result = subprocess.run(
            command, cwd=TESTS.parents[1], env=dict(os.environ), stdout=subprocess.PIPE, text=True,
            timeout=MAX_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{', '.join(files)} took more than {MAX_SECONDS} s", file=sys.stderr)
        return 0, 1
    if result.returncode:
        print(result.stdout, file=sys.stderr)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|error)", result.stdout)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return counts.get("passed", 0), failed or int(result.returncode != 0)
