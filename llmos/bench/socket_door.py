"""The syscall socket's way to tokens that HTTP clients are told, too: what the gateway's way is held against.

One more session follows the same processes. It reads each but for its last token: whoever reads that reaps
the process, and this is the gateway's to do.
"""

from __future__ import annotations

import socket
import time

import attrs

from syscalls.codec import Request
from syscalls.process import Follow, Output, Unfollow
from syscalls.session import ClientSession

RECEIVE_BYTES = 256 << 10


@attrs.define(eq=False)
class Told:
    """What was told of one process."""

    followed_at: float = 0.0  # Unix time, since when without a gap
    call_id: int = 0
    is_followed: bool = False
    tokens: dict[int, int] = attrs.field(factory=dict)  # by their place in the output
    arrivals: dict[int, float] = attrs.field(factory=dict)  # likewise: Unix time


class SocketDoor:
    """A session with the kernel that is read from outside, by whoever looks at sockets; it blocks to send.

    Args:
        socket_path: the kernel's.

    Raises:
        OSError, ConnectionLost, SyscallError: no session was opened.
    """

    def __init__(self, socket_path: str) -> None:
        self.raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._session = ClientSession()
        self._told: dict[int, Told] = {}  # by pid
        self._by_call: dict[int, Told] = {}
        try:
            self.raw.connect(socket_path)
            self.raw.sendall(self._session.encode_hello("bench"))
            while self._session.welcome is None:
                self._session.receive(self.raw.recv(RECEIVE_BYTES))
        except BaseException:
            self.raw.close()
            raise

    def told(self, pid: int) -> Told:
        """What is known of a process; nothing, before it is followed."""
        return self._told.setdefault(pid, Told())

    def follow(self, pid: int, offset: int, num_tokens: int) -> None:
        """Be told of a process from a token on, to the last but one of so many."""
        told = self.told(pid)
        if told.is_followed or offset >= num_tokens - 1:
            return
        told.followed_at, told.is_followed = time.time(), True
        told.call_id = self._post(Follow(pid, num_tokens - 1, offset))
        self._by_call[told.call_id] = told

    def unfollow(self) -> None:
        """Be told of nobody any more."""
        for told in self._told.values():
            if told.is_followed:
                told.is_followed = False
                self._post(Unfollow(told.call_id))

    def receive(self) -> bytes:
        """Take what there is off the socket; `feed` reads it later."""
        return self.raw.recv(RECEIVE_BYTES)

    def feed(self, at: float, data: bytes) -> None:
        """Read what came at a time. A process that has ended, or an end of following, is ordinary.

        Raises ConnectionLost.
        """
        for call_id, answer in self._session.receive(data):
            if not isinstance(answer, Output):
                continue
            told = self._by_call[call_id]
            for place, token in enumerate(answer.tokens, answer.offset):
                told.tokens[place] = token
                told.arrivals[place] = at

    def close(self) -> None:
        """End the session."""
        self.raw.close()

    def _post(self, body: Request) -> int:
        call_id, frame = self._session.encode_call(body)
        self.raw.sendall(frame)
        return call_id
