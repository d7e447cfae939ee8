"""What a service manager is told: systemd's notification socket, sd_notify(3), for units of `Type=notify`."""

from __future__ import annotations

import os
import socket

import trio

FEEDS_PER_PERIOD = 3  # one that comes late is not yet the end


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


def read_watchdog_period() -> float | None:
    """Seconds within which the manager wants to hear from this process (`WatchdogSec=`), if it asked."""
    period, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not period.isdecimal() or int(period) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(period) / 1e6


async def feed_watchdog() -> None:
    """Say again and again that the event loop turns; at once over where nobody asked.

    A manager that hears nothing for a period kills the process and starts another.
    """
    period = read_watchdog_period()
    while period is not None:
        notify_manager("WATCHDOG=1")
        await trio.sleep(period / FEEDS_PER_PERIOD)
