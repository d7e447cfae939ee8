"""How fairly a device has served: Jain's index, the service difference of VTC's artifact, latencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise

from llmos.bench.traffic import Outcome, Request
from llmos.bench.workload import percentile
from llmos.sched.accounts import weigh

WARM_UP_SECONDS = 30.0
TICK_SECONDS = 30.0  # from one window of the service difference to the next
WINDOW_SECONDS = 60.0


def jain(shares: Iterable[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one of n has everything. When nobody has anything, 1."""
    values = list(shares)
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1.0


def contended_windows(outcome: Outcome, seconds: float) -> Iterator[dict[str, float]]:
    """Service by weight of the tenants that had somebody waiting all the time, where these are two or more.

    Windows lie side by side, and the first begins after the warm-up, or after half a window if that is less.
    """
    weights = outcome.traffic.weights
    start = min(WARM_UP_SECONDS, seconds / 2)
    while start + seconds <= outcome.traffic.seconds:
        inside = [sample for sample in outcome.samples if start <= sample.at <= start + seconds]
        start += seconds
        if len(inside) < 2:
            continue
        backlogged = frozenset.intersection(*(sample.waiting for sample in inside))
        if len(backlogged) > 1:
            first, last = inside[0].service, inside[-1].service
            yield {
                tenant: (last[tenant] - first.get(tenant, 0.0)) / weights.get(tenant, 1.0)
                for tenant in sorted(backlogged)
            }


def largest_gap(outcome: Outcome) -> float:
    """The most by which service by weight of two tenants differed over a time in which both always waited.

    In weighted tokens; the bound of VTC is on this.
    """
    weights = outcome.traffic.weights
    largest = 0.0
    tenants = sorted({tenant for sample in outcome.samples for tenant in sample.waiting})
    for one, other in combinations(tenants, 2):
        gaps: list[float] = []
        for sample in outcome.samples:
            if not {one, other} <= sample.waiting:
                gaps.clear()
                continue
            gaps.append(
                sample.service[one] / weights.get(one, 1.0) - sample.service[other] / weights.get(other, 1.0)
            )
            largest = max(largest, max(gaps) - min(gaps))
    return largest


def service_differences(outcome: Outcome) -> list[float]:
    """The metric of VTC's artifact, in weighted tokens per second, for each tick.

    A request's service is spread evenly over its decode period. At a tick each tenant's difference is how far
    its service in the window around it is from the most that anybody had, or from what it asked for if that
    is less; they are summed. Windows of 60 s every 30 s, whole ones only.

    Source: Sheng et al. 2024, plot scripts of the artifact.
    """
    tenants = sorted({request.arrival.tenant for request in outcome.requests})
    found = []
    tick = WARM_UP_SECONDS
    while tick + WINDOW_SECONDS / 2 <= outcome.traffic.seconds:
        start, end = tick - WINDOW_SECONDS / 2, tick + WINDOW_SECONDS / 2
        served, asked = dict.fromkeys(tenants, 0.0), dict.fromkeys(tenants, 0.0)
        for request in outcome.requests:
            tenant = request.arrival.tenant
            served[tenant] += _service_within(request, start, end) / WINDOW_SECONDS
            if start <= request.arrival.at < end:
                service = weigh(request.arrival.prompt, request.arrival.output)
                asked[tenant] += service / WINDOW_SECONDS
        most = max(served.values())
        found.append(sum(min(most - served[t], abs(asked[t] - served[t])) for t in tenants))
        tick += TICK_SECONDS
    return found


def _service_within(request: Request, start: float, end: float) -> float:
    times = request.token_times
    if not times:
        return 0.0
    service = weigh(request.arrival.prompt, len(times))
    if times[-1] == times[0]:
        return service if start <= times[0] < end else 0.0
    overlap = max(0.0, min(end, times[-1]) - max(start, times[0]))
    return service * overlap / (times[-1] - times[0])


def first_token_seconds(outcome: Outcome, tenants: Iterable[str]) -> list[float]:
    """Times to the first token of some tenants' requests; of those that have none yet, up to the end."""
    wanted = set(tenants)
    return [
        (request.token_times[0] if request.token_times else outcome.traffic.seconds) - request.arrival.at
        for request in outcome.requests
        if request.arrival.tenant in wanted
    ]


def token_gaps(outcome: Outcome, tenants: Iterable[str]) -> list[float]:
    """Seconds between tokens of some tenants' requests."""
    wanted = set(tenants)
    return [
        later - earlier
        for request in outcome.requests
        if request.arrival.tenant in wanted
        for earlier, later in pairwise(request.token_times)
    ]


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return percentile(values, 99)
