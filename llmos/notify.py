"""What a service manager is told: systemd's notification socket, sd_notify(3), for units of `Type=notify`."""

from __future__ import annotations

import os
import socket


def notify_manager(state: str) -> bool:
    """Send one state, like "READY=1", to whoever started us, if it asked to be told.

    Returns whether somebody was told. A manager that went away is no reason to stop serving.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = f"\0{path[1:]}" if path.startswith("@") else path  # @: of the abstract name space
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return False
    return True
