"""Token-fair residency: the tenant that was served least is next, the one that was served most gives way."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import attrs

from llmos.sched.accounts import PROMPT_WEIGHT, Accounts
from llmos.sched.policy import Candidate, Order, View, last_in_order

SECONDS_PER_LEVEL = 2.0  # of waiting make up for one nice level, so 78 s for all of them: nobody starves


@attrs.define(eq=False)
class TokenFair:
    """Tenants by virtual token counter; inside a tenant by nice level with ageing.

    Admission takes the first process of the tenant with the least counter, again and again, and stops at one
    that does not fit: skipping it for a smaller one would starve it, and break the bound of the counters. A
    counter counts the prompts of those admitted in the same breath. Work-conserving: whoever is alone gets
    everything. Under pressure the memory of those that do not run goes first, then that of the tenant served
    most, its last process first.

    Source: Sheng et al. 2024, Fairness in Serving Large Language Models (VTC).
    """

    accounts: Accounts
    name = "fair"

    def order(self, nice: int, arrival: int, asked_at: float) -> Order:
        """See ResidencyPolicy. All who wait age alike, so when they began decides, and that stands."""
        return (nice + asked_at / SECONDS_PER_LEVEL, arrival)

    def admit(self, view: View) -> list[int]:
        """See ResidencyPolicy."""
        admitted: list[int] = []
        free, places = view.num_free_frames, view.max_running - view.num_running
        queues: dict[str, Iterator[Candidate]] = {}
        tenants: list[tuple[float, str]] = []  # a heap: counter, with what was admitted just now
        for tenant, queue in view.queues.items():
            queues[tenant] = iter(queue)
            tenants.append((self.accounts.of(tenant).counter, tenant))
        heapq.heapify(tenants)
        while tenants and len(admitted) < places:
            counter, tenant = tenants[0]
            candidate = next(queues[tenant], None)
            if candidate is None:
                heapq.heappop(tenants)
                continue
            if candidate.frames_needed > free:
                break
            admitted.append(candidate.pid)
            free -= candidate.frames_needed
            charge = PROMPT_WEIGHT * candidate.new_tokens / self.accounts.of(tenant).weight
            heapq.heapreplace(tenants, (counter + charge, tenant))
        return admitted

    def victim(self, view: View, for_pid: int) -> int | None:
        """See ResidencyPolicy."""
        return last_in_order(view, for_pid, self._place)

    def _place(self, candidate: Candidate) -> tuple[float, ...]:
        return (self.accounts.of(candidate.tenant).counter, *candidate.order)
