"""The gateway as the kernel sees it: a program of its own, started, watched and started again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import trio

from llmos.errors import LlmosError
from llmos.kernel.child_environment import child_environment
from llmos.kernel.events import EventLog

START_SECONDS = 30.0
FAST_DEATH_SECONDS = 5.0
MAX_FAST_DEATHS = 3


class GatewayFailed(LlmosError):
    """The gateway does not start; the message says what it printed or how it ended."""


class GatewayProcess:
    """Owns the gateway's operating-system process.

    Args:
        options: its command line.
        events: the kernel's event ring.
    """

    def __init__(self, options: Sequence[str], events: EventLog) -> None:
        self._command = [sys.executable, "-m", "shell.gateway", *options]
        self._events = events
        self._process: trio.Process | None = None
        self._is_stopping = False
        self._life_line: int | None = (
            None  # the gateway drains when its other end closes, as it does if we die
        )
        self.url = ""
        self.num_restarts = 0

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the gateway running until `stop`; started(url) when it listens. Raises GatewayFailed."""
        num_fast_deaths = 0
        while not self._is_stopping:
            born = trio.current_time()
            try:
                self.url = await self._start()
            except GatewayFailed:
                if self._is_stopping:
                    return
                raise
            self._keep_port()
            if self.num_restarts == 0:
                task_status.started(self.url)
            assert self._process is not None
            try:
                code = await self._process.wait()
            except trio.Cancelled:
                self._process.kill()
                raise
            finally:
                self._cut_life_line()
            if self._is_stopping:
                return
            num_fast_deaths = num_fast_deaths + 1 if trio.current_time() - born < FAST_DEATH_SECONDS else 0
            if num_fast_deaths >= MAX_FAST_DEATHS:
                raise GatewayFailed(
                    f"the gateway ended {num_fast_deaths} times in a row right after its start"
                )
            self._events.record("gateway", f"ended with code {code}; restarting", level="warning")
            self.num_restarts += 1

    async def _start(self) -> str:
        """Start it and wait for the line that says where it listens."""
        ready_reading, ready_writing = os.pipe()
        life_reading, self._life_line = os.pipe()
        command = [*self._command, "--ready-fd", str(ready_writing), "--life-fd", str(life_reading)]
        try:
            # A session of its own: a Ctrl-C in the terminal is for the kernel, which drains both.
            self._process = await trio.lowlevel.open_process(
                command,
                pass_fds=[ready_writing, life_reading],
                stdin=None,
                start_new_session=True,
                env=child_environment(),
            )
        except BaseException:
            os.close(ready_reading)
            self._cut_life_line()
            raise
        finally:
            os.close(ready_writing)
            os.close(life_reading)
        try:
            line = await self._read_ready_line(ready_reading)
        except BaseException:
            self._process.kill()
            self._cut_life_line()
            raise
        if line.endswith(b"\n"):
            return line.decode().strip()
        if self._process.poll() is None:
            self._process.kill()
        code = await self._process.wait()
        self._cut_life_line()
        raise GatewayFailed(f"the gateway did not start (exit code {code}); its last words are above")

    def _keep_port(self) -> None:
        """A port that the system chose is the gateway's for good: clients know it, and come back to it."""
        port = urlsplit(self.url).port
        self._command = [
            f"{option[:-1]}{port}" if option.startswith("--listen=") and option.endswith(":0") else option
            for option in self._command
        ]

    def _cut_life_line(self) -> None:
        if self._life_line is not None:
            os.close(self._life_line)
            self._life_line = None

    @staticmethod
    async def _read_ready_line(descriptor: int) -> bytes:
        async with trio.lowlevel.FdStream(descriptor) as ready:
            line = b""
            with trio.move_on_after(START_SECONDS):
                while not line.endswith(b"\n"):
                    data = await ready.receive_some(4096)
                    if not data:
                        break
                    line += data
        return line

    async def stop(self, grace_seconds: float) -> None:
        """Let it drain, then end it. Idempotent; a checkpoint."""
        self._is_stopping = True
        if self._process is None or self._process.poll() is not None:
            await trio.lowlevel.checkpoint()
            return
        self._process.send_signal(signal.SIGTERM)
        with trio.move_on_after(grace_seconds + 2):
            await self._process.wait()
        if self._process.poll() is None:
            self._process.kill()
            with trio.CancelScope(shield=True):
                await self._process.wait()
