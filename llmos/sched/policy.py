"""Residency policies: which processes hold memory and run. From a view to a decision, without waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import attrs

Order = tuple[float, ...]  # less goes first


@attrs.frozen
class Candidate:
    """What a policy may know of one process."""

    pid: int
    tenant: str
    order: Order  # the policy's own, see ResidencyPolicy.order
    is_running: bool  # holds memory and takes part in steps
    frames_needed: int  # to run what it has now, beyond what it holds
    frames_held: int  # those that it shares included
    new_tokens: int  # of its prompt, that its tenant has not been charged for
    service: float  # weighted tokens, since it was last admitted


@attrs.frozen
class View:
    """A device's processes and its memory at one moment."""

    waiting: Iterable[Candidate]  # READY, in the policy's order; made lazily, to be walked once
    ranked: Callable[[Callable[[int], Order]], Iterable[Candidate]]  # the same, by a rank of pids; lazy
    queues: Mapping[str, Iterable[Candidate]]  # the same by tenant; lazy as well
    running: Mapping[str, Iterable[Candidate]]  # RUNNING, by tenant, the last in order first; lazy
    num_promised: Callable[[str], int]  # of a tenant: prompt tokens admitted, and not yet charged
    holding: Iterable[Candidate]  # those with memory, whether they run or not; lazy as well, in no order
    num_free_frames: int  # free, or cached and given up on demand
    num_running: int
    max_running: int


class ResidencyPolicy(Protocol):
    """Decides who is resident. Never awaits, never sees a device."""

    name: str
    review_steps: int  # `give_way` is asked once in so many steps; 0: never

    def order(self, nice: int, arrival: int, asked_at: float, deadline: float) -> Order:
        """Where a process stands among others of its tenant. It must not change while the process waits.

        Args:
            nice: −20 to 19, less goes first.
            arrival: order among spawns.
            asked_at: when this turn was asked for, in seconds on the kernel's clock.
            deadline: when it should be done, on the same clock; infinite: whenever.
        """

    def standing(self, tenant: str) -> float:
        """Whose prompts go first in a step: those of the tenant for which this is least."""

    def is_over_share(self, tenant: str) -> bool:
        """Does a tenant run so much that its prompts should not hold up others' decodes?"""

    def admit(self, view: View) -> list[int]:
        """Return the pids of waiting candidates to admit now, in order. They fit in what is free."""

    def victim(self, view: View, for_pid: int) -> int | None:
        """Return the pid that should give its memory up so that `for_pid` can grow, or None: nobody should.

        None means that `for_pid` itself must wait.
        """

    def give_way(self, view: View) -> list[int]:
        """Return the pids of running processes that should lose their memory now, so that others can run."""


class FirstComeFirstServed:
    """Nice level first, then order of arrival; nobody overtakes.

    A process that does not fit holds up those behind it, so a large prompt cannot starve. Under pressure the
    memory of those that do not run goes first, latest arrival first; then that of the last in the order.
    """

    name = "fcfs"
    review_steps = 0

    def order(self, nice: int, arrival: int, asked_at: float, deadline: float) -> Order:
        """See ResidencyPolicy."""
        return (nice, arrival)

    def standing(self, tenant: str) -> float:
        """See ResidencyPolicy. All tenants are one."""
        return 0.0

    def is_over_share(self, tenant: str) -> bool:
        """See ResidencyPolicy."""
        return False

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
        return last_in_order(view, for_pid, lambda candidate: candidate.order)

    def give_way(self, view: View) -> list[int]:
        """See ResidencyPolicy. Who runs has come first."""
        return []


def last_in_order(view: View, for_pid: int, key: Callable[[Candidate], tuple[float, ...]]) -> int | None:
    """The last that does not run, else the last that runs; None when that is the one it is for."""
    holding = list(view.holding)
    idle = [c for c in holding if not c.is_running and c.pid != for_pid]
    if idle:
        return max(idle, key=key).pid
    running = [c for c in holding if c.is_running]
    if not running:
        return None
    last = max(running, key=key).pid
    return None if last == for_pid else last
