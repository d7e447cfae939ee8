"""Has large bodies decoded by a process of its own, which is there from the first such body on."""

from __future__ import annotations

import array
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import msgspec
import structlog
import trio

from shell.gateway.body_file import BodyFile
from shell.gateway.body_parts import BodyLimits, Joiner
from shell.gateway.body_process import LENGTH, Accepted, Refused
from shell.gateway.errors import ApiError, unavailable

MAX_SECONDS = 60.0  # for one body; the worst of 64 MiB takes a few
RECEIVE_BYTES = 64 << 10
KEPT_BYTES = 128 << 20  # memory that the process may have when it has nothing to do

log = structlog.get_logger("gateway.bodies")


@attrs.define(eq=False)
class BodyProcess:
    """A running process, and the socket to it."""

    process: trio.Process
    stream: trio.SocketStream
    _received: bytearray = attrs.field(factory=bytearray)
    _answers: msgspec.msgpack.Decoder[Refused | Accepted] = attrs.field(
        factory=lambda: msgspec.msgpack.Decoder(Refused | Accepted)
    )

    async def hand_over(self, file: BodyFile, limits: BodyLimits) -> None:
        """Send a body. Raises OSError when nobody is there."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.descriptor]))
        await self.stream.socket.sendmsg([msgspec.msgpack.encode(limits)], [rights])

    async def receive_answer(self) -> Refused | Accepted:
        """Wait for what becomes of the body. Raises trio.BrokenResourceError."""
        return self._answers.decode(await self.receive())

    async def receive(self) -> bytearray:
        """Wait for a message. Always a checkpoint, so that many of them leave others their time.

        Raises trio.BrokenResourceError: the process is gone.
        """
        await trio.lowlevel.checkpoint()
        await self._fill(LENGTH.size)
        (length,) = LENGTH.unpack_from(self._received)
        await self._fill(LENGTH.size + length)
        message = self._received[LENGTH.size : LENGTH.size + length]
        del self._received[: LENGTH.size + length]
        return message

    async def _fill(self, num_bytes: int) -> None:
        while len(self._received) < num_bytes:
            data = await self.stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise trio.BrokenResourceError("the process is gone")
            self._received += data

    async def aclose(self) -> None:
        """End it. A checkpoint, also when cancelled."""
        with trio.CancelScope(shield=True):
            self.process.kill()
            await self.stream.aclose()
            await self.process.wait()


async def start_process(max_body_bytes: int, kept_bytes: int) -> BodyProcess:
    """Start a process. It ends when it is told to, or when we are gone, however we went."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "shell.gateway.body_process"]
    try:
        process = await trio.lowlevel.open_process(
            [*command, *map(str, (theirs.fileno(), max_body_bytes, kept_bytes))],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is for us
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    log.info("body_process_started", os_pid=process.pid)
    return BodyProcess(process, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))


@attrs.define(eq=False)
class BodyReader:
    """Reads large bodies in the order in which they have arrived, one at a time."""

    max_body_bytes: int
    kept_bytes: int = KEPT_BYTES
    _process: BodyProcess | None = None
    _turn: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def process_id(self) -> int | None:
        """Of the process; None: there is none."""
        return None if self._process is None else self._process.process.pid

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the process, for ever."""
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            await self._end_process()

    async def read(self, file: BodyFile, limits: BodyLimits) -> dict[str, Any] | Refused:
        """Return what a body says, nulls dropped, or why it is not taken.

        A process that dies meanwhile was perhaps ended by somebody: the next one gets the body once more.

        Raises:
            ApiError: 503 `overloaded`: that one died too, or it took too long.
        """
        async with self._turn:
            for _ in range(2):
                with trio.move_on_after(MAX_SECONDS) as patience:
                    try:
                        async with self._open_process() as process:
                            return await self._ask(process, file, limits)
                    except (trio.BrokenResourceError, OSError) as error:
                        log.warning("body_process_died", error=str(error))
                if patience.cancelled_caught:
                    log.warning("body_process_stuck", seconds=MAX_SECONDS)
                    break
            raise body_unread()

    @asynccontextmanager
    async def _open_process(self) -> AsyncIterator[BodyProcess]:
        """The process, started if need be; ended when the block does not come to its end."""
        if self._process is None:
            self._process = await start_process(self.max_body_bytes, self.kept_bytes)
        try:
            yield self._process
        except BaseException:  # what it says next would be the answer to this body
            await self._end_process()
            raise

    async def _ask(
        self, process: BodyProcess, file: BodyFile, limits: BodyLimits
    ) -> dict[str, Any] | Refused:
        await process.hand_over(file, limits)
        answer = await process.receive_answer()
        value: dict[str, Any] | Refused
        if isinstance(answer, Refused):
            value = answer
        else:
            joiner = Joiner()
            for _ in range(answer.num_parts):
                value = joiner.add(await process.receive())
        if answer.is_last:
            await self._end_process()
        return value

    async def _end_process(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            await process.aclose()


def body_unread() -> ApiError:
    """A 503 for a body whose process did not live to read it."""
    return unavailable("overloaded", "The request's body could not be read: its process ended, or was stuck.")
