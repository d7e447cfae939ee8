"""A port for a server that must come back to the same one."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path


def find_free_port() -> int:
    """A port that is free, and that nobody gets who asks for any port."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(low // 2, low), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")
