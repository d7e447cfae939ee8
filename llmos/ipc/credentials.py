"""Unix-socket endpoints: who is at the other end, and listening where nobody else does."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import frozen

from llmos.errors import LlmosError

_UCRED = struct.Struct("iII")  # struct ucred of unix(7)
BACKLOG = 128  # connections that may wait to be accepted


@frozen
class PeerCredentials:
    """The process at the other end of a Unix socket, as it was when it connected; vouched for by the host."""

    pid: int
    uid: int
    gid: int


class AddressInUse(LlmosError):
    """The socket path belongs to someone: a live server, or a file that is not a socket."""


def peer_credentials(sock: trio.socket.SocketType | socket.socket) -> PeerCredentials:
    """Ask the operating system who connected. Raises OSError when the socket is not a Unix socket."""
    return PeerCredentials(
        *_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    )


def listen_unix(path: str | os.PathLike[str], mode: int = 0o600) -> trio.SocketListener:
    """Listen on a Unix socket, replacing the file of a dead server. Does not block.

    A missing parent directory is made with mode 0700. Nobody can connect before the socket has its mode.

    Args:
        path: where the socket file goes.
        mode: its permission bits.

    Raises:
        AddressInUse: a live server listens there, or the path is not a socket.
        OSError: the path is too long or not writable.
    """
    path = Path(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path.parent):  # two servers that start at once must not both find the old file dead
        _remove_if_dead(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(os.fspath(path))
            path.chmod(mode)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_if_dead(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AddressInUse(f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except BlockingIOError:  # alive, with a full backlog
            raise AddressInUse(f"a live server listens on {path}") from None
        else:
            raise AddressInUse(f"a live server listens on {path}")
