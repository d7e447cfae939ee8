"""How much memory there is to be had."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_memory_bytes"]

CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """Memory that can be had without swapping: what the system has, or less under a container's limit."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return available  # no cgroup v2 here: the machine is ours
    return available if limit == "max" else min(available, max(0, int(limit) - used))
