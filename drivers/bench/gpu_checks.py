"""Tests on the device, before anything is measured: the speed of wrong results is of no interest."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured

__all__ = ["check_device"]

TESTS = Path(__file__).parents[2] / "tests"
GROUPS = {
    "properties and parity": (
        "drivers/test_triton_elementwise.py", "drivers/test_triton_linear.py",
        "drivers/test_triton_attention.py", "drivers/test_triton_sample.py", "drivers/test_triton_int8.py",
        "drivers/test_triton_kv_int8.py",
    ),
    "transparency of steps": (
        "drivers/test_triton_model.py", "drivers/test_step_queue.py", "drivers/test_two_steps.py",
    ),
    # its memory, kernels, copies and a whole server on it: together, cut, forked, swapped
    "transparency of processes": ("system/test_cuda_triton.py",),
}  # fmt: skip
END_SECONDS = 5.0
REHEARSED = {"properties and parity": ("drivers/test_triton_elementwise.py",)}


def check_device(setup: Setup) -> Iterator[Measured]:
    """Properties and parity with the reference, then transparency of whole steps, and of processes.

    Each file has a process, and all run at once: most of their time goes to compiling. What has not ended in
    time is ended, and counts as far as it came.

    Raises:
        FileNotFoundError: this is not a checkout: tests are not shipped.
    """
    if not TESTS.is_dir():
        raise FileNotFoundError(f"{TESTS} is not there: run this in a checkout")
    groups = GROUPS if setup.is_gpu else REHEARSED
    with tempfile.TemporaryDirectory() as folder:
        runs = {file: _Run(Path(folder), file) for files in groups.values() for file in files}
        try:
            for name, files in groups.items():
                counts = [runs[file].wait(setup) for file in files]
                passed, failed = (sum(column) for column in zip(*counts, strict=True))
                ratio = passed / (passed + failed) if passed else 0.0
                yield Measured(f"checks: {name}", "passed", passed, "tests", f"{failed} failed", ratio, 1)
        finally:
            for each in runs.values():
                each.end()


class _Run:
    """One file's tests, in a process."""

    def __init__(self, folder: Path, file: str) -> None:
        self._file = file
        self._output = folder / f"{Path(file).stem}.txt"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(TESTS / file)],
                cwd=TESTS.parent, env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdout=output,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self, setup: Setup) -> tuple[int, int]:
        """How many tests passed by the deadline, and how many failed. What failed goes to standard error."""
        try:
            code = self._process.wait(max(0.0, setup.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.end()
            setup.left_out.append((f"checks: {self._file}", "the rest of it: no time was left"))
            code = 0
        told = self._output.read_text(errors="replace")
        ends = re.findall(r"^\S+::.* (PASSED|FAILED|ERROR)\b", told, re.MULTILINE)
        failed = len(ends) - ends.count("PASSED")
        if code or failed:
            print(told, file=sys.stderr)
        return ends.count("PASSED"), failed or int(code != 0)

    def end(self) -> None:
        """End the process, if it has not; first it may end the servers that it started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        self._process.kill()
        self._process.wait()
