"""Users of a tenant: within its share, those that were served least go first.

A user is a name that a spawn brings, and that the tenant alone answers for: it moves nothing between tenants.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

import attrs

from llmos.proc.pcb import Process
from llmos.sched.accounts import PROMPT_WEIGHT

MAX_REMEMBERED = 4096  # users of whom nothing lives; the longest gone are forgotten
MAX_COMPARED = 64  # users that one who comes back is compared to: with thousands it would take milliseconds


@attrs.define(eq=False)
class Users:
    """What the users of all tenants were served on one device, as far as that still matters.

    A user that comes back is lifted to the least served of its tenant's, or of those who are there for
    longest where they are many: having asked for nothing earns no credit. Processes that name nobody are
    together one user.

    Args:
        service: weighted tokens that a process has been served in its life.

    Source: as Accounts, one level below.
    """

    service: Callable[[Process], float]
    num_named: int = 0  # living processes that name a user; 0: there are no turns to take
    _living: dict[str, dict[str, dict[Process, float]]] = attrs.field(factory=dict)  # with service at entry
    _ended: OrderedDict[tuple[str, str], float] = attrs.field(factory=OrderedDict)  # of those that ended

    def enter(self, process: Process) -> None:
        """Count a process that has come."""
        users = self._living.setdefault(process.tenant, {})
        if process.user not in users:
            key = process.tenant, process.user
            others = itertools.islice(users, MAX_COMPARED)
            least = min((self.served(process.tenant, user) for user in others), default=0.0)
            self._ended[key] = max(self._ended.get(key, 0.0), least)
            users[process.user] = {}
        users[process.user][process] = self.service(process)
        self.num_named += bool(process.user)

    def leave(self, process: Process) -> None:
        """A process has ended: what it was served stays on its user's account."""
        users = self._living[process.tenant]
        processes = users[process.user]
        key = process.tenant, process.user
        self._ended[key] = self._ended.get(key, 0.0) + self.service(process) - processes.pop(process)
        self._ended.move_to_end(key)
        self.num_named -= bool(process.user)
        if not processes:
            del users[process.user]
        if not users:
            del self._living[process.tenant]
        while len(self._ended) > MAX_REMEMBERED + len(self._living):
            self._ended.popitem(last=False)

    def served(self, tenant: str, user: str) -> float:
        """Weighted tokens of a user, lifts included. O(its processes)."""
        living = self._living.get(tenant, {}).get(user, {})
        return self._ended.get((tenant, user), 0.0) + sum(
            self.service(process) - before for process, before in living.items()
        )

    def by_turns(self, queue: Iterable[Process]) -> Iterator[Process]:
        """The processes of one tenant's queue: those of each user in their order, users as they were served.

        Each counts with the prompt that it brings as soon as it is taken, so that equals take turns.
        """
        lines: dict[str, list[Process]] = {}
        for process in queue:
            lines.setdefault(process.user, []).append(process)
        if len(lines) < 2:
            for line in lines.values():
                yield from line
            return
        # Equals in the order of the queue: a line begins where its user's first process stands there.
        heap = [
            (self.served(line[0].tenant, user), place, 0, user)
            for place, (user, line) in enumerate(lines.items())
        ]
        heapq.heapify(heap)
        while heap:
            served, place, index, user = heap[0]
            process = lines[user][index]
            yield process
            if index + 1 == len(lines[user]):
                heapq.heappop(heap)
            else:
                served += PROMPT_WEIGHT * max(1, process.num_uncharged)
                heapq.heapreplace(heap, (served, place, index + 1, user))
