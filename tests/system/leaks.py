"""The leak count that ends every system test: frames, processes, sessions, tasks, file descriptors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from llmos.bench.server import Server, running_server
from syscalls.sync import SyncClient
from syscalls.system import StatisticsInfo

SETTLE_SECONDS = 60.0  # on a busy machine


def count(server: Server) -> StatisticsInfo:
    """Ask the kernel for its counters."""
    with SyncClient(server.socket_path, name="leak count") as client:
        return client.statistics()


def differences(before: StatisticsInfo, now: StatisticsInfo) -> dict[str, tuple[int, int]]:
    """What is not back where it began: name → (then, now)."""
    found = {
        name: (getattr(before, name), getattr(now, name))
        for name in ("num_sessions", "num_tasks", "num_open_files")
        if getattr(now, name) > getattr(before, name)
    }
    for name in ("num_processes", "num_running", "num_waiting"):
        if getattr(now, name):
            found[name] = (0, getattr(now, name))
    if now.num_free_frames + now.num_cached_frames != now.num_frames:
        found["frames in use"] = (0, now.num_frames - now.num_free_frames - now.num_cached_frames)
    return found


def assert_no_leak(server: Server, before: StatisticsInfo) -> None:
    """Everything is back where it began; what others have just closed gets a moment to be noticed."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (found := differences(before, count(server))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not found, f"leaked, as name: (then, now): {found}"


@contextmanager
def counted_server(*options: str, gateway: bool = True) -> Iterator[Server]:
    """Run a server as `running_server` does, and end with the leak count."""
    with running_server(*options, gateway=gateway) as server:
        before = count(server)
        yield server
        assert_no_leak(server, before)
