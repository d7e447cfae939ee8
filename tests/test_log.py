"""What processes log of a failure: where it was, not what lies in its variables."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from {module} import configure_logging

class Huge:
    def __repr__(self):
        return "gigabytes"

def fail():
    huge = Huge()
    raise ValueError("no frames")

configure_logging("info", "console")
try:
    fail()
except ValueError as error:
    structlog.get_logger("test").error("failed", exc_info=error)
"""


@pytest.mark.parametrize("module", ["llmos.log", "shell.gateway.logs"])
def test_a_failure_is_told_without_the_values_of_variables(module: str) -> None:
    """Its text, where it was raised, and no more."""
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "ValueError: no frames" in said
    assert "in fail" in said
    assert "gigabytes" not in said
