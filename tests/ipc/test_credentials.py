"""Unix-socket endpoints on the real file system."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from llmos.ipc.credentials import AddressInUse, PeerCredentials, listen_unix, peer_credentials


async def test_a_peer_is_who_the_host_says(tmp_path: Path) -> None:
    """Both ends learn this process's own pid, uid and gid."""
    path = tmp_path / "kernel.sock"
    async with listen_unix(path) as listener:
        client = await trio.open_unix_socket(path)
        server = await listener.accept()
        async with client, server:
            expected = PeerCredentials(os.getpid(), os.getuid(), os.getgid())
            assert peer_credentials(server.socket) == expected
            assert peer_credentials(client.socket) == expected


async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    """The socket gets its mode, and a directory made for it is private."""
    path = tmp_path / "run" / "kernel.sock"
    async with listen_unix(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    other = tmp_path / "shared.sock"
    async with listen_unix(other, mode=0o660):
        assert stat.S_IMODE(other.stat().st_mode) == 0o660


async def test_a_dead_servers_file_is_replaced(tmp_path: Path) -> None:
    """What a crashed server left behind does not keep the next one from starting."""
    path = tmp_path / "kernel.sock"
    async with listen_unix(path):
        pass
    assert path.is_socket()
    async with listen_unix(path) as listener:
        async with await trio.open_unix_socket(path), await listener.accept():
            pass


async def test_a_live_server_keeps_its_address(tmp_path: Path) -> None:
    """A second server is refused by name, and the first goes on serving."""
    path = tmp_path / "kernel.sock"
    async with listen_unix(path) as listener:
        with pytest.raises(AddressInUse, match=r"live server .*kernel\.sock"):
            listen_unix(path)
        (await listener.accept()).socket.close()  # the probe
        async with await trio.open_unix_socket(path), await listener.accept():
            pass


def test_a_live_server_with_a_full_backlog_keeps_its_address(tmp_path: Path) -> None:
    """A server that is too busy to accept is not taken for dead."""
    path = tmp_path / "kernel.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(AddressInUse, match="live server"):
            listen_unix(path)


def test_a_file_that_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    """A path given by mistake does not cost the user a file."""
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(AddressInUse, match="not a socket"):
        listen_unix(path)
    assert path.read_text() == "precious"
