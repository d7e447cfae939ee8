"""`llmos bench`, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys

PATIENCE_SECONDS = 480


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `llmos bench …` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "llmos.cli", "bench", *arguments],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
