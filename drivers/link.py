"""The driver's end of the line to the kernel: plain blocking reads and writes on a socket."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Sequence

import msgspec

from llmos.device import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    Compile,
    Copy,
    FromDriver,
    ToDriver,
    encode_message,
    to_driver_decoder,
)  # fmt: skip

__all__ = ["KernelLink", "LinkError"]

READ_BYTES = 256 << 10


class LinkError(Exception):
    """The kernel sent what is no message: the two ends do not understand each other."""


class KernelLink:
    """Messages over a stream socket. Everything here blocks; there is one user."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._messages: deque[ToDriver] = deque()  # that are whole
        self.is_over = False  # nothing more will arrive

    def receive(self) -> ToDriver | None:
        """Wait for the next message. None when the kernel has closed its end, or died in mid-message.

        Raises:
            LinkError: a length over MAX_MESSAGE_BYTES, found before anything is allocated, or a payload that
                is no message.
        """
        while not self._messages and not self._decode():
            if not self._read(0):
                return None
        return self._messages.popleft()

    def fileno(self) -> int:
        """A descriptor that polls as readable when there is something to read, or nothing more will be."""
        return self._sock.fileno()

    def take_compiles(self) -> list[Compile]:
        """The grammars among what has arrived: they need not wait until the messages before them are done.

        Does not wait. Raises LinkError, as `receive` does.
        """
        self._take_in()
        found = [message for message in self._messages if isinstance(message, Compile)]
        for message in found:
            self._messages.remove(message)
        return found

    def take_copies(self, step_id: int) -> list[Copy]:
        """The copies among what has arrived that need not wait for a step, or one behind it.

        Does not wait. Raises LinkError, as `receive` does.
        """
        self._take_in()
        found = [
            message
            for message in self._messages
            if isinstance(message, Copy) and message.after is not None and message.after < step_id
        ]
        for message in found:
            self._messages.remove(message)
        return found

    def wait_message(self, fds: Sequence[int], seconds: float | None = None) -> bool:
        """Wait until a message or its beginning is here, one of `fds` is readable, or time is over.

        Returns:
            True for the message. The end of the stream counts as one, as it does for `receive`.
        """
        if self._messages or len(self._buffer) >= LENGTH.size:
            return True
        poll = select.poll()
        for fd in (self._sock.fileno(), *fds):
            poll.register(fd, select.POLLIN)
        ready = poll.poll(None if seconds is None else 1e3 * seconds)
        return any(fd == self._sock.fileno() for fd, _ in ready)

    def send(self, message: FromDriver) -> bool:
        """Send a message. False when the kernel is gone."""
        try:
            self._sock.sendall(encode_message(message))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _take_in(self) -> None:
        while self._read(socket.MSG_DONTWAIT):
            pass
        while self._decode():
            pass

    def _read(self, flags: int) -> bool:
        """Take what has arrived into the buffer. False: nothing has, or nothing more will."""
        try:
            data = self._sock.recv(READ_BYTES, flags)
        except (BlockingIOError, ConnectionResetError):
            return False
        self._buffer += data
        self.is_over = not data
        return bool(data)

    def _decode(self) -> bool:
        """Take a message out of the buffer. False: there is no whole one. Raises LinkError."""
        if len(self._buffer) < LENGTH.size:
            return False
        (size,) = LENGTH.unpack_from(self._buffer)
        if size > MAX_MESSAGE_BYTES:
            raise LinkError(f"message of {size} bytes; the limit is {MAX_MESSAGE_BYTES}")
        end = LENGTH.size + size
        if len(self._buffer) < end:
            return False
        try:
            self._messages.append(to_driver_decoder.decode(memoryview(self._buffer)[LENGTH.size : end]))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LinkError(f"undecodable message of {size} bytes: {error}") from None
        del self._buffer[:end]
        return True
