"""The gateway as the kernel sees it: a program of its own, started, watched and started again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from urllib.parse import urlsplit

import trio

from llmos.errors import LlmosError
from llmos.kernel.child_environment import child_environment
from llmos.kernel.events import EventLog

START_SECONDS = 30.0
END_SECONDS = 2.0  # for one to end by itself that has hung up before it was ready
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
        # A pipe's end: the gateway drains when it closes, as it does if we die.
        self._life_line: int | None = None
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
            finally:
                await self._end_now()
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
        """Start it and wait for the line that says where it listens; otherwise nothing of it is left.

        Raises GatewayFailed.
        """
        try:
            line = await self._launch()
            if line.endswith(b"\n"):
                return line.decode().strip()
            assert self._process is not None
            with trio.move_on_after(END_SECONDS):
                await self._process.wait()  # it may be ending by itself: how, says why
        except BaseException:
            await self._end_now()
            raise
        await self._end_now()
        code = self._process.returncode
        raise GatewayFailed(f"the gateway did not start (exit code {code}); its last words are above")

    async def _launch(self) -> bytes:
        """Start it, and return what it says when it is ready, or has ended, or has said nothing for long."""
        self._process = None
        with ExitStack() as theirs:
            ready_reading, ready_writing = os.pipe()
            theirs.callback(os.close, ready_writing)
            with ExitStack() as on_failure:
                on_failure.callback(os.close, ready_reading)
                life_reading, self._life_line = os.pipe()
                theirs.callback(os.close, life_reading)
                # A session of its own: a Ctrl-C in the terminal is for the kernel, which drains both.
                self._process = await trio.lowlevel.open_process(
                    [*self._command, "--ready-fd", str(ready_writing), "--life-fd", str(life_reading)],
                    pass_fds=[ready_writing, life_reading],
                    stdin=None,
                    start_new_session=True,
                    env=child_environment(),
                )
                on_failure.pop_all()
        return await self._read_ready_line(ready_reading)

    async def _end_now(self) -> None:
        """Kill it if it lives, reap it, and let go of the life line. A checkpoint, which is not cancelled."""
        self._cut_life_line()
        with trio.CancelScope(shield=True):
            if self._process is not None:
                if self._process.poll() is None:
                    self._process.kill()
                await self._process.wait()
            else:
                await trio.lowlevel.checkpoint()

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
