"""Placement: which device a new process goes to. A pure function from a frozen view to a choice."""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.frozen
class DeviceLoad:
    """What a placement policy may know of one device."""

    name: str
    is_ready: bool
    num_processes: int  # placed there and not exited
    num_free_frames: int


def least_loaded(loads: Sequence[DeviceLoad]) -> str | None:
    """Pick the device with the fewest processes, then the most free frames; the first on a tie.

    Devices that are not ready are picked only when none is: their processes wait. None without any device.
    """
    if not loads:
        return None
    return min(loads, key=lambda load: (not load.is_ready, load.num_processes, -load.num_free_frames)).name
