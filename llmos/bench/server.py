"""A real llmos server for a benchmark: a process of its own, started with options and stopped afterwards."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmos.errors import LlmosError
from syscalls.session import ConnectionLost
from syscalls.sync import SyncClient

START_SECONDS = 120.0


class ServerDidNotStart(LlmosError):
    """What the server said instead of its ready line."""


class Server:
    """Where a running server can be reached."""

    def __init__(self, url: str, socket_path: str, ready_seconds: float) -> None:
        self.url = url
        self.socket_path = socket_path
        self.ready_seconds = ready_seconds  # from exec to the ready line


@contextmanager
def running_server(*options: str, gateway: bool = True) -> Iterator[Server]:
    """Run `llmos up` with options; yields when its ready line is out, and drains it on the way out. Blocks.

    Raises ServerDidNotStart.
    """
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        socket_path = str(Path(folder) / "llmos.sock")
        command = [sys.executable, "-m", "llmos.cli", "up", "--socket", socket_path, *options]
        command += ["--listen", "127.0.0.1:0" if gateway else ""]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("llmos ready"):
                raise ServerDidNotStart(f"{' '.join(command)}: {line or 'no ready line'}")
            url = line.split(" · ")[0].removeprefix("llmos ready: ") if gateway else ""
            yield Server(url, socket_path, time.perf_counter() - began)
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
            process.stdout.close() if process.stdout else None
