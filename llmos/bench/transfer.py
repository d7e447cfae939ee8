"""`llmos bench transfer`: copies between tiers of memory, against one large copy of the same bytes."""

from __future__ import annotations

from pathlib import Path

from llmos.bench.child import run_measurements
from llmos.config import ConfigError


def main(*, folder: str | None, num_runs: int, is_quick: bool, json_path: str | None) -> int:
    """Measure, print the table, write the rows."""
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"folder {folder!r} is not there")
    options = ["--runs", str(num_runs)]
    options += ["--folder", folder] if folder else []
    options += ["--quick"] if is_quick else []
    return run_measurements("transfer", "drivers.bench.transfer", options, json_path)
