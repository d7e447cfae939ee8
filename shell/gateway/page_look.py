"""One look of the live page at the kernel: everything is asked at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from syscalls.client import Client
from syscalls.memory import FrameMap
from syscalls.process import ProcessInfo
from syscalls.system import DeviceInfo, Event, StatisticsInfo
from syscalls.tenant import TenantShare

MAX_EVENTS = 200  # of a look: the newest


@attrs.frozen
class Look:
    """What the kernel answered. Of a quick look, without what costs more, the last three are None."""

    processes: list[ProcessInfo]  # that live, by pid
    statistics: StatisticsInfo
    events: tuple[Event, ...]  # since the look before
    shares: tuple[TenantShare, ...] | None = None
    devices: tuple[DeviceInfo, ...] | None = None
    frame_maps: tuple[FrameMap, ...] | None = None


async def take_look(client: Client, first_event: int, *, is_quick: bool) -> Look:
    """Ask for all in one go: one wait for a kernel that is busy, and answers of about the same moment.

    Raises, in a group: ConnectionLost, SyscallError.
    """
    answers: dict[str, Any] = {}

    async def keep(name: str, call: Callable[[], Awaitable[Any]]) -> None:
        answers[name] = await call()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, "processes", lambda: client.ps(everyone=client.welcome.admin, shared=False))
        nursery.start_soon(keep, "statistics", client.statistics)
        nursery.start_soon(keep, "events", lambda: client.events(first_event, MAX_EVENTS))
        if not is_quick:
            nursery.start_soon(keep, "shares", lambda: client.shares(memory=False))
            nursery.start_soon(keep, "devices", client.devices)
            nursery.start_soon(keep, "frame_maps", client.frames)
    answers["processes"] = [each for each in answers["processes"] if each.state != "ZOMBIE"]
    return Look(**answers)
