"""Token-fair residency: the tenant that was served least is next, the one that was served most gives way."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator

import attrs

from llmos.sched.accounts import PROMPT_WEIGHT, Accounts
from llmos.sched.policy import Candidate, Order, View, last_in_order

SECONDS_PER_LEVEL = 2.0  # of waiting make up for one nice level, so 78 s for all of them: nobody starves
LEVELS_TO_GIVE_WAY = 5  # that a tenant's own process must be behind another one, to be stopped for it
OVER_SHARE = 1.5  # times its share is what a tenant may run before its prompts give way to others' decodes
NUM_QUANTA = 4  # of service that two tenants may differ by, before it matters more than who runs how many
DEFAULT_QUANTUM = 128.0  # weighted tokens


@attrs.define(eq=False)
class TokenFair:
    """Tenants by virtual token counter; inside a tenant by nice level with ageing, in a level by deadline.

    Admission takes the first process of the tenant with the least counter, again and again, and stops at one
    that does not fit: skipping it for a smaller one would starve it, and break the bound of the counters. A
    counter is taken with the prompts that were admitted and are still to be computed. Work-conserving:
    whoever is alone gets everything. Under pressure the memory of those that do not run goes first, then that
    of the tenant served most, its last process first.

    Counters that differ by a few quanta are as good as equal: a tenant that runs less than its share goes
    before them by so much, or its second request in a second would wait until a flood has been served as
    much as its first one was.

    Who waits need not wait for others to end. When the process that is next does not fit, running ones give
    way to it: the last ones of a tenant that was served more than its own and, for its weight, still runs
    as many when they have stopped; one more, if it is ahead by some quanta; or of its own tenant, those
    behind it by some nice levels. Each has been served a quantum since it was admitted, which pays for
    its switch, and tenants that run equally many do not push each other out in turn.

    Args:
        accounts: of all tenants.
        quantum: in weighted tokens; infinite: nobody gives way.

    Source: Sheng et al. 2024, Fairness in Serving Large Language Models (VTC), for the counters. They never
    preempt; the bound of 2 U is then a bound of what runs at once, and with `give_way` of the quantum.
    """

    accounts: Accounts
    quantum: float = DEFAULT_QUANTUM
    _made_room_for: Candidate | None = attrs.field(default=None, init=False)
    name = "fair"
    review_steps = 1  # a look is cheap where nobody is to stop, and whoever waits waits for it

    def order(self, nice: int, arrival: int, asked_at: float, deadline: float) -> Order:
        """See ResidencyPolicy. All who wait age alike, so when they began decides, and that stands."""
        level = nice + asked_at / SECONDS_PER_LEVEL
        return (math.floor(level), deadline, level, arrival)

    def standing(self, tenant: str) -> float:
        """See ResidencyPolicy. By what was computed, so that no prompt is behind for having been admitted."""
        return self.accounts.of(tenant).counter

    def is_over_share(self, tenant: str) -> bool:
        """See ResidencyPolicy. The share is of what runs, among those who run something."""
        return self._load(tenant, 0) > OVER_SHARE * self.accounts.mean_load

    def admit(self, view: View) -> list[int]:
        """See ResidencyPolicy."""
        admitted: list[int] = []
        free, places = view.num_free_frames, view.max_running - view.num_running
        queues: dict[str, Iterator[Candidate]] = {}
        counters: dict[str, float] = {}  # with what was admitted just now
        num_admitted: Counter[str] = Counter()
        tenants: list[tuple[float, str]] = []  # a heap
        for tenant, queue in view.queues.items():
            queues[tenant] = iter(queue)
            counters[tenant] = self._promised(view, tenant)
            tenants.append((counters[tenant] - self._lead(tenant, 0), tenant))
        if (owed := self._owed(view)) is not None:
            tenants = [(-math.inf if tenant == owed else rank, tenant) for rank, tenant in tenants]
        heapq.heapify(tenants)
        while tenants and len(admitted) < places:
            _, tenant = tenants[0]
            candidate = next(queues[tenant], None)
            if candidate is None:
                heapq.heappop(tenants)
                continue
            if candidate.frames_needed > free:
                break
            admitted.append(candidate.pid)
            free -= candidate.frames_needed
            num_admitted[tenant] += 1
            counters[tenant] += PROMPT_WEIGHT * candidate.new_tokens / self.accounts.of(tenant).weight
            rank = counters[tenant] - self._lead(tenant, num_admitted[tenant])
            heapq.heapreplace(tenants, (rank, tenant))
        return admitted

    def victim(self, view: View, for_pid: int) -> int | None:
        """See ResidencyPolicy."""
        return last_in_order(view, for_pid, self._place)

    def give_way(self, view: View) -> list[int]:
        """See ResidencyPolicy. Nobody stops in vain: all together they make room, or nobody is named."""
        if not view.queues:
            return []
        counters = {tenant: self._promised(view, tenant) for tenant in view.queues}
        ranks = {tenant: counter - self._lead(tenant, 0) for tenant, counter in counters.items()}
        if (owed := self._owed(view)) is not None:
            ranks[owed] = -math.inf
        heads = (
            head
            for tenant in sorted(ranks, key=lambda name: (ranks[name], name))
            for head in itertools.islice(view.queues[tenant], 1)
        )
        head = next(heads, None)  # a tenant's queue may be empty: all of it waits for a limit of the tenant
        if head is None:
            return []
        free, has_place = view.num_free_frames, view.num_running < view.max_running
        stopped: list[int] = []
        for candidate in self._behind(view, head, counters[head.tenant]):
            if (has_place or stopped) and head.frames_needed <= free:
                break
            stopped.append(candidate.pid)
            free += candidate.frames_held
        if not stopped or head.frames_needed > free:
            return []
        if has_place and any(not c.is_running and c.pid != head.pid for c in view.holding):
            return []  # memory of those that do not run comes first, and admission takes it
        self._made_room_for = head
        return stopped

    def _behind(self, view: View, head: Candidate, counter: float) -> Iterator[Candidate]:
        """The running processes that should give way to `head`, whose tenant stands at `counter`."""
        lead = self._lead(head.tenant, 0)
        ahead = [
            (gap, tenant)
            for tenant in view.running
            if tenant != head.tenant and (gap := self._promised(view, tenant) - counter) > -lead
        ]
        own, own_with_head = self._load(head.tenant, 0), self._load(head.tenant, 1)
        for gap, tenant in sorted(ahead, reverse=True):
            num_stopped = 0
            for candidate in view.running[tenant]:
                # Equal shares of places are always right. Beyond them a place changes hands only to turn the
                # difference round: from who was served more, and still is served faster.
                is_equal = self._load(tenant, -1 - num_stopped) >= own_with_head
                turns = gap > NUM_QUANTA * self.quantum and self._load(tenant, -num_stopped) > own
                if not is_equal and not turns:
                    break
                if candidate.service >= self.quantum:
                    num_stopped += 1
                    yield candidate
        for candidate in view.running.get(head.tenant, ()):
            if candidate.order[0] - head.order[0] < LEVELS_TO_GIVE_WAY:
                break
            if candidate.service >= self.quantum:
                yield candidate

    def _owed(self, view: View) -> str | None:
        """The tenant whose first process others have stopped for, until that is admitted.

        Shares are others once somebody has stopped; the place is its all the same.
        """
        if self._made_room_for is None:
            return None
        first = next(iter(view.queues.get(self._made_room_for.tenant, ())), None)
        if first is None or first.pid != self._made_room_for.pid:
            self._made_room_for = None
            return None
        return first.tenant

    def _load(self, tenant: str, more: int) -> float:
        """Processes that run, for a tenant's weight, with so many more."""
        account = self.accounts.of(tenant)
        return (account.num_running + more) / account.weight

    def _lead(self, tenant: str, num_admitted: int) -> float:
        """By how much a tenant may have been served more than another one, and still be next."""
        is_below = self._load(tenant, num_admitted + 1) <= self.accounts.mean_load
        return NUM_QUANTA * self.quantum if is_below and self.quantum < math.inf else 0.0

    def _promised(self, view: View, tenant: str) -> float:
        """A tenant's counter when all is computed that it was admitted with."""
        account = self.accounts.of(tenant)
        return account.counter + PROMPT_WEIGHT * view.num_promised(tenant) / account.weight

    def _place(self, candidate: Candidate) -> tuple[float, ...]:
        return (self.accounts.of(candidate.tenant).counter, *candidate.order)
