"""Real servers for system tests: kernel, driver and gateway processes, on the built-in model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmos.bench.server import Server
from tests.system.leaks import counted_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for a module, on the CPU, with one thread. Ends with the leak count."""
    with counted_server("--device", "cpu", "--threads", "1", "--pool-mib", "256") as running:
        yield running
