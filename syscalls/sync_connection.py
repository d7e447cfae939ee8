"""A blocking client's connection to the kernel: one call at a time, and what becomes of interrupted ones."""

from __future__ import annotations

import socket
from contextlib import suppress

from syscalls.codec import Answer, ErrorReply, Request, Welcome
from syscalls.embedding import Embed
from syscalls.image import Restore
from syscalls.process import Fork, Kill, Spawn, Spawned, Wait
from syscalls.session import ClientSession, ConnectionLost

RECEIVE_BYTES = 256 << 10
ORPHAN_SECONDS = 1.0  # of silence, at the end, where an interrupted call or a burial is not answered


class SyncConnection:
    """A session over a blocking Unix socket. Whoever makes one closes it; arguments as for SyncClient."""

    def __init__(self, path: str, name: str, key: str) -> None:
        self._session = ClientSession()
        self._answers: dict[int, Answer] = {}
        self._orphaned: set[int] = set()  # interrupted calls that create, which are not answered yet
        self._graves: set[int] = set()  # calls that bury processes, which are not answered yet
        self._lost: str | None = None  # why the session is over
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                self._socket.connect(path)
            except OSError as error:
                raise ConnectionLost(f"no kernel answers at {path}: {error.strerror or error}") from error
            self._send(self._session.encode_hello(name, key))
            while self._session.welcome is None:
                self._receive()
        except BaseException:
            self._socket.close()
            raise

    @property
    def welcome(self) -> Welcome:
        """What the kernel said when it opened the session: its version, our tenant and rights."""
        assert self._session.welcome is not None
        return self._session.welcome

    def call(self, body: Request) -> Answer:
        """Make one call and wait for its answer. Raises SyscallError and ConnectionLost.

        Interrupted, the answer is dropped when it comes, and what it says was created is killed.
        """
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        call_id, frame = self._session.encode_call(body)
        self._send(frame)
        self._answers.clear()  # of calls that were interrupted
        try:
            while call_id not in self._answers:
                self._receive()
        except BaseException:
            if isinstance(body, Spawn | Embed | Fork | Restore):
                self._orphaned.add(call_id)
                self._bury_orphans()  # the answer may just have come
            raise
        answer = self._answers.pop(call_id)
        if isinstance(answer, ErrorReply):
            raise answer.as_error()
        return answer

    def bury(self, pids: tuple[int, ...]) -> None:
        """Kill and reap processes; only the session's end waits for the replies."""
        for pid in pids if self._lost is None else ():
            for body in (Kill(pid), Wait(pid)):
                call_id, frame = self._session.encode_call(body)
                with suppress(ConnectionLost):
                    self._send(frame)
                    self._graves.add(call_id)

    def close(self) -> None:
        """End the session; see `SyncClient.close`."""
        try:
            while (self._orphaned or self._graves) and self._lost is None:
                self._socket.settimeout(ORPHAN_SECONDS)
                with suppress(ConnectionLost):
                    self._receive()
        finally:
            self._end()

    def _send(self, frame: bytes) -> None:
        try:
            self._socket.sendall(frame)
        except OSError:
            while True:  # the kernel may have said why before it closed
                self._receive()
        except BaseException:
            self._end()  # interrupted half-way through a frame: nothing can follow it
            raise

    def _receive(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            self._lost = f"the connection to the kernel broke: {error}"
            raise ConnectionLost(self._lost) from error
        try:
            self._answers.update(self._session.receive(data))
            self._graves -= self._answers.keys()
            if self._orphaned:
                self._bury_orphans()
        except ConnectionLost as error:
            self._lost = str(error)
            raise
        except BaseException:
            self._end()  # interrupted half-way through an answer
            raise

    def _bury_orphans(self) -> None:
        """Kill and reap what interrupted calls are now known to have created."""
        for call_id in self._orphaned & self._answers.keys():
            self._orphaned.remove(call_id)
            answer = self._answers.pop(call_id)
            if isinstance(answer, Spawned):
                self.bury(answer.pids)

    def _end(self) -> None:
        """End the session, whatever is not answered."""
        self._lost = self._lost or "this client was closed"
        self._socket.close()
