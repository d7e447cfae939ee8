"""The driver's end of the line to the kernel: plain blocking reads and writes on a socket."""

from __future__ import annotations

import select
import socket

import msgspec

from llmos.device import LENGTH, MAX_MESSAGE_BYTES, FromDriver, ToDriver, encode_message, to_driver_decoder

__all__ = ["KernelLink", "LinkError"]

READ_BYTES = 256 << 10


class LinkError(Exception):
    """The kernel sent what is no message: the two ends do not understand each other."""


class KernelLink:
    """Messages over a stream socket. Everything here blocks; there is one user."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def receive(self) -> ToDriver | None:
        """Wait for the next message. None when the kernel has closed its end, or died in mid-message.

        Raises:
            LinkError: a length over MAX_MESSAGE_BYTES, found before anything is allocated, or a payload that
                is no message.
        """
        if not self._fill(LENGTH.size):
            return None
        (size,) = LENGTH.unpack_from(self._buffer)
        if size > MAX_MESSAGE_BYTES:
            raise LinkError(f"message of {size} bytes; the limit is {MAX_MESSAGE_BYTES}")
        end = LENGTH.size + size
        if not self._fill(end):
            return None
        try:
            message = to_driver_decoder.decode(memoryview(self._buffer)[LENGTH.size : end])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LinkError(f"undecodable message of {size} bytes: {error}") from None
        del self._buffer[:end]
        return message

    def wait_message(self, fd: int) -> bool:
        """Wait until a message or its beginning is here, or until `fd` is readable. True for the message.

        The end of the stream counts as a message, as it does for `receive`.
        """
        if len(self._buffer) >= LENGTH.size:
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(fd, select.POLLIN)
        return any(ready == self._sock.fileno() for ready, _ in poll.poll())

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

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            try:
                data = self._sock.recv(READ_BYTES)
            except ConnectionResetError:
                return False
            if not data:
                return False
            self._buffer += data
        return True
