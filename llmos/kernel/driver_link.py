"""The line to a driver in a process of its own: a socketpair, and the process at its other end."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys

import trio

from llmos.device import (
    MAX_MESSAGE_BYTES,
    DriverLost,
    FromDriver,
    StopDriver,
    ToDriver,
    encode_message,
    from_driver_decoder,
)
from llmos.ipc.framing import FrameError, FrameStream
from llmos.kernel.child_environment import child_environment
from llmos.params import DRIVER_STOP_SECONDS

# Read before the driver's first line runs: threads that wait must not spin (on a busy core a spinning barrier
# is many times slower), and scratch tensors must not go back to the operating system after every step.
DRIVER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
}


class ProcessLink:
    """A DriverLink to an operating-system process. Open it with `open_driver`, close it with `aclose`."""

    def __init__(self, process: trio.Process, stream: FrameStream, name: str) -> None:
        self._process = process
        self._stream = stream
        self._name = name
        self._received: list[FromDriver] = []  # newest first
        self._is_closed = False

    @property
    def os_pid(self) -> int:
        """The operating system's id of the driver process."""
        return self._process.pid

    def _lost(self) -> DriverLost:
        code = self._process.poll()
        if code is None:
            return DriverLost(f"driver {self._name} closed its line")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return DriverLost(f"driver {self._name} (process {self._process.pid}) {how}")

    async def send(self, message: ToDriver) -> None:
        """See DriverLink."""
        try:
            await self._stream.send_all(encode_message(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._lost() from None

    async def receive(self) -> FromDriver:
        """See DriverLink."""
        if not self._received:
            try:
                payloads = await self._stream.receive_payloads()
            except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError, FrameError):
                with trio.move_on_after(1):
                    await self._process.wait()  # EOF comes a moment before the exit code
                raise self._lost() from None
            self._received = [from_driver_decoder.decode(payload) for payload in reversed(payloads)]
        else:
            await trio.lowlevel.checkpoint()
        return self._received.pop()

    def kill(self) -> None:
        """End a driver that does not answer. The reader of this link then sees DriverLost."""
        self._process.kill()

    async def aclose(self) -> None:
        """See DriverLink."""
        if self._is_closed:
            return
        self._is_closed = True
        with trio.CancelScope(shield=True):
            with trio.move_on_after(DRIVER_STOP_SECONDS):
                # It may be gone, or a send to it may have been cut short: EOF tells it to stop, too.
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._stream.send_all(encode_message(StopDriver()))
                await self._stream.aclose()
                await self._process.wait()
            await self._stream.aclose()
            if self._process.poll() is None:
                self._process.kill()
                await self._process.wait()


async def open_driver(kind: str, name: str, num_threads: int, cpus: tuple[int, ...] = ()) -> ProcessLink:
    """Start a driver process. It says Hello when it is up. A checkpoint.

    Args:
        kind: "cpu", "cuda", or "encoder": a processor that only makes vectors.
        name: of the device.
        num_threads: for its operations.
        cpus: processors to pin it to; empty: none.

    Raises:
        OSError: the process could not be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        command = [
            sys.executable, "-m", "drivers.host", "--fd", str(theirs.fileno()),
            "--kind", kind, "--name", name, "--threads", str(num_threads),
        ]  # fmt: skip
        if cpus:
            command += ["--cpus", ",".join(map(str, cpus))]
        try:
            # A session of its own: a Ctrl-C in the terminal must not reach it.
            process = await trio.lowlevel.open_process(
                command,
                pass_fds=[theirs.fileno()],
                stdin=None,
                start_new_session=True,
                env=child_environment(DRIVER_ENVIRONMENT),
            )
        except BaseException:
            ours.close()
            raise
    stream = FrameStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), MAX_MESSAGE_BYTES)
    return ProcessLink(process, stream, name)
