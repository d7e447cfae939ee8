"""The loads of `llmos bench fair`: those of VTC's evaluation, and a flood beside light tenants.

Arrivals are Poisson processes of fixed seeds. Rates are in requests per second.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from llmos.bench.traffic import Arrival, Flood, Traffic

SECONDS = 300.0  # of the synthetic loads
ARENA_SECONDS = 600.0
# A flood's requests begin together, and end together for minutes: where a run ends in such a wave counts for
# 1.7 % of the throughput of 300 s. And light tenants send 233 requests: few for a 99th percentile, not 59.
FLOOD_SECONDS = 1200.0
TOKENS = 256  # of each prompt and of each output
PHASE_SECONDS = 60.0  # of a tenant that is on and off
LIGHT = tuple(f"light-{i}" for i in range(4))


def poisson(
    tenant: str,
    rate: float,
    seconds: float,
    *,
    prompt: int = TOKENS,
    output: int = TOKENS,
    phases: bool = False,
) -> list[Arrival]:
    """Requests of one tenant; with `phases` it is on for a minute, then off for one, and so on."""
    rng = random.Random(f"{tenant}/{rate}")
    found, now = [], rng.expovariate(rate)
    while now < seconds:
        if not phases or now // PHASE_SECONDS % 2 == 0:
            found.append(Arrival(now, tenant, prompt, output))
        now += rng.expovariate(rate)
    return found


def merge(*streams: Sequence[Arrival]) -> tuple[Arrival, ...]:
    """Several tenants' requests in order of arrival."""
    return tuple(sorted((a for stream in streams for a in stream), key=lambda a: (a.at, a.tenant)))


def of_rates(*rates: float) -> Traffic:
    """Tenants that send requests of one size, each at its rate."""
    return Traffic(merge(*(poisson(f"tenant-{i}", rate, SECONDS) for i, rate in enumerate(rates))), SECONDS)


def weighted() -> Traffic:
    """Four tenants above their shares, which are as 1 : 2 : 3 : 4."""
    traffic = of_rates(0.8, 0.8, 1.2, 1.6)
    return Traffic(traffic.arrivals, SECONDS, weights={f"tenant-{i}": i + 1.0 for i in range(4)})


def on_off(rate: float, other: float) -> Traffic:
    """One tenant that is on and off by the minute, beside one that never pauses."""
    streams = poisson("on-off", rate, SECONDS, phases=True), poisson("steady", other, SECONDS)
    return Traffic(merge(*streams), SECONDS)


def flood() -> Traffic:
    """One tenant with 64 requests outstanding, four that send one now and then: a sixth of their fair share.

    A request takes 15 s, and a fair share is five at a time: at this rate even a chance cluster is within it.
    """
    streams = (poisson(tenant, 0.05, FLOOD_SECONDS) for tenant in LIGHT)
    return Traffic(merge(*streams), FLOOD_SECONDS, (Flood("flood", 64, TOKENS, TOKENS),))


def arena(path: Path) -> Traffic:
    """27 clients of a chat arena: 1,500 requests in ten minutes, of very unequal demand."""
    with path.open(newline="") as file:
        arrivals = [
            Arrival(
                float(row["arrival_s"]),
                f"client-{row['client']}",
                int(row["prompt_tokens"]),
                int(row["output_tokens"]),
            )
            for row in csv.DictReader(file)
        ]
    return Traffic(merge(arrivals), ARENA_SECONDS)


def small_flood(seconds: float) -> Traffic:
    """The flood for a small model on a real device: short requests, so that seconds hold many."""
    streams = (poisson(tenant, 2.0, seconds, prompt=64, output=32) for tenant in LIGHT)
    return Traffic(merge(*streams), seconds, (Flood("flood", 64, 128, 128),))


def small_overload(seconds: float) -> Traffic:
    """Two tenants that both ask for more than their share, one for twice as much as the other."""
    floods = Flood("tenant-0", 64, 128, 128), Flood("tenant-1", 128, 128, 128)
    return Traffic((), seconds, floods)
