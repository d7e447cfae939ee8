"""What if there are no file descriptors? One line says so, and there are as many as may be."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from syscalls.descriptors import QUIET_SECONDS, use_descriptors

LISTENERS = logging.getLogger("trio.serve_listeners")


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What was told; the logger is as before afterwards."""
    before = LISTENERS.filters[:]
    messages: list[str] = []
    use_descriptors(messages.append)
    yield messages
    LISTENERS.filters[:] = before


def test_trio_is_heard_once_in_a_while(told: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Ten complaints a second become one line in ten seconds, without a traceback."""
    for tenth in range(205):
        text = "accept returned EMFILE (Too many open files); retrying in 0.1 seconds"
        record = LISTENERS.makeRecord(LISTENERS.name, logging.ERROR, __file__, 1, text, (), None)
        record.created = 1e9 + tenth / 10
        LISTENERS.handle(record)
    assert len(told) == 1 + int(20.4 / QUIET_SECONDS)
    assert told[0].startswith("new connections wait: accept returned EMFILE")
    assert caplog.records == []


PROGRAM = """
import resource
from syscalls.descriptors import use_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
use_descriptors(print)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_is_raised() -> None:
    """To what the process may have."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout == "(200, 200)\n"
