"""The gateway's process, with programs in its place that start badly: whatever happens, nothing is left."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from llmos.kernel import gateway_process
from llmos.kernel.events import EventLog
from llmos.kernel.gateway_process import GatewayFailed, GatewayProcess

READY_FD = "import os, sys, time; ready = int(sys.argv[2]);"  # behind the option's name
SAYS_NOTHING = READY_FD + "time.sleep(600)"
HANGS_UP = READY_FD + "os.close(ready); time.sleep(600)"
ENDS = READY_FD + "sys.exit(3)"
SERVES = READY_FD + "os.write(ready, b'http://127.0.0.1:1\\n'); time.sleep(600)"


@asynccontextmanager
async def gateway_that(program: str) -> AsyncIterator[GatewayProcess]:
    """One that runs a program in the gateway's place. Afterwards its process is reaped, its pipes closed."""
    num_before = len(os.listdir("/proc/self/fd"))
    gateway = GatewayProcess([], EventLog())
    gateway._command = [sys.executable, "-c", program]
    yield gateway
    assert gateway._process is not None
    assert gateway._process.returncode is not None
    assert len(os.listdir("/proc/self/fd")) <= num_before  # what others left may go meanwhile


def cancelling(scope: trio.CancelScope, wait: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A wait that is cancelled as it begins."""

    async def cancel_and_wait(of: Any) -> Any:
        scope.cancel()
        return await wait(of)

    return cancel_and_wait


async def test_cancelled_when_it_serves() -> None:
    """What if the kernel is cancelled without a drain?"""
    async with gateway_that(SERVES) as gateway, trio.open_nursery() as nursery:
        assert await nursery.start(gateway.run) == "http://127.0.0.1:1"
        nursery.cancel_scope.cancel()


async def test_cancelled_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What if a boot is cancelled that waits for the gateway to be ready?"""
    scope = trio.CancelScope()
    read = cancelling(scope, GatewayProcess._read_ready_line)
    monkeypatch.setattr(GatewayProcess, "_read_ready_line", staticmethod(read))
    async with gateway_that(SAYS_NOTHING) as gateway:
        with scope:
            await gateway.run()
    assert scope.cancelled_caught


async def test_cancelled_while_its_end_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """What if the cancel comes when it has hung up, and its end is waited for?"""
    scope = trio.CancelScope()
    monkeypatch.setattr(trio.Process, "wait", cancelling(scope, trio.Process.wait))
    async with gateway_that(HANGS_UP) as gateway:
        with scope:
            await gateway.run()
    assert scope.cancelled_caught


@pytest.mark.parametrize(("program", "code"), [(HANGS_UP, -9), (ENDS, 3)])
async def test_it_does_not_start(program: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that hangs up, or ends, before it is ready is a named error."""
    monkeypatch.setattr(gateway_process, "END_SECONDS", 0.0 if program is HANGS_UP else 60.0)
    async with gateway_that(program) as gateway:
        with pytest.raises(GatewayFailed, match=rf"exit code {code}\b"):
            await gateway.run()


async def test_silence_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing for too long is killed."""
    monkeypatch.setattr(gateway_process, "START_SECONDS", 0.0)
    monkeypatch.setattr(gateway_process, "END_SECONDS", 0.0)
    async with gateway_that(SAYS_NOTHING) as gateway:
        with pytest.raises(GatewayFailed, match="exit code -9"):
            await gateway.run()


async def test_it_cannot_be_started(tmp_path: Path) -> None:
    """What if there is no such program? The error is the system's, and no pipe stays."""
    num_before = len(os.listdir("/proc/self/fd"))
    gateway = GatewayProcess([], EventLog())
    gateway._command = [str(tmp_path / "absent")]
    with pytest.raises(FileNotFoundError):
        await gateway.run()
    assert len(os.listdir("/proc/self/fd")) <= num_before  # what others left may go meanwhile
