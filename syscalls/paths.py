"""Where the kernel's socket is, to bind and to connect by one rule, and where state is kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def default_socket_path() -> Path:
    """Return the socket's path for this user.

    $LLMOS_SOCKET when set, else $XDG_RUNTIME_DIR/llmos/llmos.sock, else /tmp/llmos-<uid>/llmos.sock.
    """
    if chosen := os.environ.get("LLMOS_SOCKET"):
        return Path(chosen)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "llmos" / "llmos.sock"
    return Path(f"/tmp/llmos-{os.getuid()}") / "llmos.sock"


def state_folder() -> Path:
    """Return where this user's state is kept: $XDG_STATE_HOME/llmos, else ~/.local/state/llmos."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "llmos"


def prepare_socket_directory(path: Path) -> None:
    """Make the folder that will hold the socket, readable by its owner only.

    A folder that exists is left as it is, but must belong to this user or to root: in /tmp anyone may have
    made it first, and would own the socket's name. A symbolic link counts as what it is, not what it names.

    Raises:
        PermissionError: the folder belongs to somebody else; names both users.
        NotADirectoryError: something else is in its place.
    """
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{folder} belongs to user {found.st_uid}, not to user {os.getuid()}")
    if not stat.S_ISDIR(found.st_mode) and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
