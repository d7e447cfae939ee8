"""The kernel's event ring: what dmesg prints."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import structlog

from llmos.params import EVENT_RING_SIZE
from syscalls.system import Event

log = structlog.get_logger("kernel")


class EventLog:
    """A ring of events, and those who follow it. Every event also goes to the log."""

    def __init__(self, size: int = EVENT_RING_SIZE) -> None:
        self._ring: deque[Event] = deque(maxlen=size)
        self._next = 1
        self._followers: list[Callable[[], None]] = []

    def record(self, subsystem: str, text: str, *, level: str = "info", pid: int | None = None) -> None:
        """Add one line. `level` is info, warning or error."""
        self._ring.append(Event(self._next, time.time(), level, subsystem, text, pid))
        self._next += 1
        getattr(log, level)(text, subsystem=subsystem, **({} if pid is None else {"pid": pid}))
        followers, self._followers = self._followers, []
        for follower in followers:
            follower()

    def since(self, sequence: int, limit: int) -> tuple[Event, ...]:
        """The newest `limit` events from `sequence` on, oldest first."""
        found = [event for event in self._ring if event.sequence >= sequence]
        return tuple(found[-limit:]) if limit > 0 else ()

    def follow(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, at the next event."""
        self._followers.append(wake)

    def unfollow(self, wake: Callable[[], None]) -> None:
        """Forget a follower that is gone. Does nothing when it was woken already."""
        if wake in self._followers:
            self._followers.remove(wake)
