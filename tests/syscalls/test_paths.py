"""Where the socket is, and whose folder it may be in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from syscalls.paths import default_socket_path, prepare_socket_directory, state_folder


def test_order_of_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLMOS_SOCKET wins over XDG_RUNTIME_DIR, which wins over /tmp; empty counts as unset."""
    monkeypatch.setenv("LLMOS_SOCKET", "/a/b.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/5")
    assert default_socket_path() == Path("/a/b.sock")
    monkeypatch.setenv("LLMOS_SOCKET", "")
    assert default_socket_path() == Path("/run/user/5/llmos/llmos.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket_path() == Path(f"/tmp/llmos-{os.getuid()}/llmos.sock")


def test_state_is_kept_where_the_desktop_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In XDG_STATE_HOME, else below the home folder; empty counts as unset."""
    monkeypatch.setenv("HOME", "/home/ada")
    for chosen, expected in (("/var/state", "/var/state"), ("", "/home/ada/.local/state")):
        monkeypatch.setenv("XDG_STATE_HOME", chosen)
        assert state_folder() == Path(expected) / "llmos"


def test_folder_is_private_and_made_once(tmp_path: Path) -> None:
    """A new folder is for its owner only; an existing one of ours is taken as it is."""
    path = tmp_path / "llmos" / "llmos.sock"
    prepare_socket_directory(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    prepare_socket_directory(path)


def test_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that another user made first is refused by both names."""
    folder = tmp_path / "llmos"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
        owner, user = 12345, 0
    else:
        owner, user = os.getuid(), 54321
        monkeypatch.setattr(os, "getuid", lambda: user)
    with pytest.raises(PermissionError, match=f"user {owner}, not to user {user}"):
        prepare_socket_directory(folder / "llmos.sock")
