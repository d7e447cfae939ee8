"""A real llmos server for a benchmark: a process of its own, started with options and stopped afterwards."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from llmos.boot import Ready
from llmos.errors import LlmosError
from syscalls.session import ConnectionLost
from syscalls.sync import SyncClient


class ServerDidNotStart(LlmosError):
    """The server ended before it was ready; what it wrote to standard error says why."""


class Server:
    """Where a running server can be reached."""

    def __init__(self, url: str, socket_path: str, ready_seconds: float, os_pid: int = 0) -> None:
        self.url = url
        self.socket_path = socket_path
        self.os_pid = os_pid  # of the kernel; 0: it is somebody else's
        self.ready_seconds = ready_seconds  # from exec to the line that says so


@contextmanager
def running_server(
    *options: str, gateway: bool = True, start_seconds: float | None = None
) -> Iterator[Server]:
    """Run `llmos up` with options; yields when it serves, and drains it on the way out. Blocks.

    Args:
        options: of `llmos up`.
        gateway: start one, too.
        start_seconds: that it may take until it serves; None: any.

    Raises:
        ServerDidNotStart: it ended before it served, or had not come to it in time.
    """
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        socket_path = str(Path(folder) / "llmos.sock")
        command = [sys.executable, "-m", "llmos.cli", "up", "--socket", socket_path]
        command += ["--listen", "127.0.0.1:0" if gateway else "", *options]  # an option of the caller's wins
        began = time.perf_counter()
        process, line = _start(command, start_seconds)
        try:
            if line is None:
                raise ServerDidNotStart(f"{' '.join(command)} was not ready within {start_seconds:.0f} s")
            if not line:
                raise ServerDidNotStart(f"{' '.join(command)} ended before it was ready")
            ready = msgspec.json.decode(line, type=Ready)
            yield Server(ready.url, ready.socket_path, time.perf_counter() - began, process.pid)
        finally:
            try:
                with SyncClient(socket_path) as client:
                    client.shutdown(0.0)
            except ConnectionLost:
                process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(command: list[str], seconds: float | None) -> tuple[subprocess.Popen[bytes], bytes | None]:
    """Start a server, and wait for its ready line; empty: the server ended instead; None: time is over."""
    reading, writing = os.pipe()
    with open(reading, "rb") as ready_lines:
        try:
            process = subprocess.Popen(
                [*command, "--ready-fd", str(writing)], stdout=subprocess.DEVNULL, pass_fds=[writing]
            )
        finally:
            os.close(writing)  # only the server has it now: when it ends, the line does
        ready, _, _ = select.select([reading], [], [], seconds)
        return process, ready_lines.readline() if ready else None
