"""`llmos bench cpu`: the kernels of device cpu against the peaks of the machine, and whole models on them."""

from __future__ import annotations

from llmos.bench.child import run_measurements
from llmos.bench.sections import choose_sections
from llmos.config import ConfigError, num_cores

SECTIONS = ("peaks", "gemm", "attention", "step", "sampling", "decode")


def main(
    *, only: str | None, threads: int | None, num_runs: int, is_quick: bool, json_path: str | None
) -> int:
    """Measure, print the table, write the rows."""
    sections = choose_sections(only, SECTIONS)
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; at least 1")
    options = ["--threads", str(threads or num_cores()), "--runs", str(num_runs), "--sections", *sections]
    options += ["--quick"] if is_quick else []
    return run_measurements("cpu", "drivers.bench.cpu", options, json_path)
