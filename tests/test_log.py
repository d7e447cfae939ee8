"""What processes log: of a failure where it was, not what lies in its variables; texts of others tamed."""

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


TEXTS = """
import structlog
from {module} import configure_logging

configure_logging("info", "{form}")
structlog.get_logger("test").info("found\\x1b]0;", path="/a\\x1b[31m", label="a\\nb \\u202e", many=["\\x9b"])
"""


@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("module", ["llmos.log", "shell.gateway.logs"])
def test_texts_of_others_do_not_drive_the_terminal(module: str, form: str) -> None:
    """One line, of characters that can be printed, whatever a client called its things."""
    command = [sys.executable, "-c", TEXTS.format(module=module, form=form)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert said.removesuffix("\n").isprintable()
    assert r"[31m" in said


@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("module", ["llmos.log", "shell.gateway.logs"])
def test_a_full_disk_ends_nobody(module: str, form: str) -> None:
    """A process that logs to a file which takes nothing goes on."""
    program = TEXTS.format(module=module, form=form) + "\nprint('went on')"
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", program]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=True)
    assert ran.stdout == "went on\n"
