"""Residency policies: which processes hold memory and run. Pure functions, from a view to a decision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import attrs


@attrs.frozen
class Candidate:
    """What a policy may know of one process."""

    pid: int
    nice: int
    arrival: int  # order among spawns
    is_running: bool  # holds memory and takes part in steps
    frames_needed: int  # to run what it has now, beyond what it holds


@attrs.frozen
class View:
    """A device's processes and its memory at one moment."""

    waiting: Iterable[Candidate]  # READY, by nice level and arrival; made lazily, to be walked once
    holding: Iterable[Candidate]  # those with memory, whether they run or not; lazy as well, in no order
    num_free_frames: int  # free, or cached and given up on demand
    num_running: int
    max_running: int


class ResidencyPolicy(Protocol):
    """Decides who is resident. Never awaits, never sees a device."""

    name: str

    def admit(self, view: View) -> list[int]:
        """Return the pids of waiting candidates to admit now, in order. They fit in what is free."""

    def victim(self, view: View, for_pid: int) -> int | None:
        """Return the pid that should give its memory up so that `for_pid` can grow, or None: nobody should.

        None means that `for_pid` itself must wait.
        """


class FirstComeFirstServed:
    """Nice level first, then order of arrival; nobody overtakes.

    A process that does not fit holds up those behind it, so a large prompt cannot starve. Under pressure the
    memory of those that do not run goes first, latest arrival first; then that of the last in the order.
    """

    name = "fcfs"

    @staticmethod
    def _order(candidate: Candidate) -> tuple[int, int]:
        return (candidate.nice, candidate.arrival)

    def admit(self, view: View) -> list[int]:
        """See ResidencyPolicy."""
        admitted: list[int] = []
        free = view.num_free_frames
        places = view.max_running - view.num_running
        for candidate in view.waiting:
            if len(admitted) >= places or candidate.frames_needed > free:
                break
            admitted.append(candidate.pid)
            free -= candidate.frames_needed
        return admitted

    def victim(self, view: View, for_pid: int) -> int | None:
        """See ResidencyPolicy."""
        holding = list(view.holding)
        idle = [c for c in holding if not c.is_running and c.pid != for_pid]
        if idle:
            return max(idle, key=self._order).pid
        running = [c for c in holding if c.is_running]
        if not running:
            return None
        last = max(running, key=self._order).pid
        return None if last == for_pid else last


POLICIES: dict[str, type[ResidencyPolicy]] = {FirstComeFirstServed.name: FirstComeFirstServed}
