"""Users of a tenant: within its share, those that were served least go first.

A user is a name that a spawn brings, and that the tenant alone answers for: it moves nothing between tenants.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

import attrs

from llmos.proc.pcb import Process

MAX_REMEMBERED = 4096  # users of whom nothing lives; the longest gone are forgotten
MAX_COMPARED = 64  # users that one who comes back is compared to: with thousands it would take milliseconds


@attrs.define(eq=False)
class _User:
    """One of whom something lives."""

    settled: float  # what its processes had been served when each was last settled, and lifts
    living: dict[Process, float] = attrs.field(factory=dict)  # with their service when last settled
    running: set[Process] = attrs.field(factory=set)  # whose service grows


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
    _present: dict[str, dict[str, _User]] = attrs.field(factory=dict)  # by tenant and name
    _gone: OrderedDict[tuple[str, str], float] = attrs.field(factory=OrderedDict)

    def enter(self, process: Process) -> None:
        """Count a process that has come. Mutates the accounts."""
        users = self._present.setdefault(process.tenant, {})
        if (user := users.get(process.user)) is None:
            others = itertools.islice(users, MAX_COMPARED)
            least = min((self.served(process.tenant, name) for name in others), default=0.0)
            before = self._gone.pop((process.tenant, process.user), 0.0)
            user = users[process.user] = _User(max(before, least))
        user.living[process] = self.service(process)

    def settle(self, process: Process, *, is_running: bool) -> None:
        """Write down what a process was served, as it begins or ceases to run. Mutates the accounts."""
        user = self._present[process.tenant][process.user]
        service = self.service(process)
        user.settled += service - user.living[process]
        user.living[process] = service
        if is_running:
            user.running.add(process)
        else:
            user.running.discard(process)

    def leave(self, process: Process) -> None:
        """A process has ended: what it was served stays on its user's account. Mutates the accounts."""
        self.settle(process, is_running=False)
        users = self._present[process.tenant]
        user = users[process.user]
        del user.living[process]
        if user.living:
            return
        del users[process.user]
        if not users:
            del self._present[process.tenant]
        self._gone[process.tenant, process.user] = user.settled
        if len(self._gone) > MAX_REMEMBERED:
            self._gone.popitem(last=False)

    def settled(self, tenant: str, name: str) -> float:
        """Weighted tokens of a user, lifts included, without what those that run have had since they do."""
        user = self._present.get(tenant, {}).get(name)
        return self._gone.get((tenant, name), 0.0) if user is None else user.settled

    def served(self, tenant: str, name: str) -> float:
        """Weighted tokens of a user, lifts included. O(those of its processes that run)."""
        user = self._present.get(tenant, {}).get(name)
        if user is None:
            return self._gone.get((tenant, name), 0.0)
        return user.settled + sum(self.service(process) - user.living[process] for process in user.running)
