"""The curve of `llmos bench fair`: light tenants from almost idle to their whole fair share, beside a flood.

What a flood costs the others depends on what they ask for. Who sends a request now and then finds an idle
device when alone, and there any other row makes a step longer; who asks for most of a fair share has company
of its own. So there are several loads, as shares of the fair share, and each is measured three times with the
same requests: beside the flood, without it, and one tenant alone. Lengths are those of the arena's trace, the
flood's too, so that throughput does not depend on who is served.
"""

from __future__ import annotations

import csv
import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from llmos.bench.fairness import first_token_seconds, token_gaps
from llmos.bench.report import Report
from llmos.bench.suites import LIGHT, merge
from llmos.bench.traffic import Arrival, Flood, Measure, Outcome, Traffic
from llmos.bench.workload import percentile
from llmos.config import ConfigError
from llmos.sched.accounts import weigh

PERCENTILES = (50, 99)
NUM_OUTSTANDING = 64  # requests of the flood
MIN_REQUESTS = 100  # of all light tenants together, wherever the longest run is long enough for so many

Lengths = tuple[int, int]  # of a prompt and its output, in tokens


@attrs.frozen
class Machine:
    """A device that the curve is measured on."""

    name: str
    measure: Measure
    lengths: Sequence[Lengths]  # of requests, drawn from with equal chances
    seconds: float  # of a run
    most_seconds: float  # of one whose light tenants send little

    @property
    def flood(self) -> Flood:
        """A tenant with many requests outstanding, whose lengths are the trace's, one after the other."""
        prompt, output = self.lengths[0]
        return Flood("flood", NUM_OUTSTANDING, prompt, output, tuple(self.lengths))


def parse_loads(listed: str) -> list[float]:
    """Loads from percentages with commas between them. Raises ConfigError."""
    found = []
    for word in filter(None, map(str.strip, listed.split(","))):
        try:
            percent = float(word)
        except ValueError:
            percent = 0.0
        if not 0 < percent <= 100:
            raise ConfigError(f"light load {word!r} is not a percentage above 0, at most 100")
        found.append(percent / 100)
    return found


def read_lengths(path: Path, shrink: int) -> list[Lengths]:
    """Lengths of the trace's requests, divided by `shrink`. Raises ConfigError where there is no trace."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist; lengths of the light tenants' requests are from it")
    with path.open(newline="") as file:
        return [
            (max(1, int(row["prompt_tokens"]) // shrink), max(2, int(row["output_tokens"]) // shrink))
            for row in csv.DictReader(file)
        ]


def light_traffic(machine: Machine, load: float, capacity: float, seed: int = 0) -> Traffic:
    """The flood and four light tenants, each of which asks for `load` of its fair share.

    Args:
        machine: where they come to.
        load: as a share of the fair share, which is a fifth of the capacity.
        capacity: weighted tokens per second, that the flood has when it is alone.
        seed: of lengths and gaps.
    """
    mean = statistics.fmean(itertools.starmap(weigh, machine.lengths))
    rate = load * capacity / (len(LIGHT) + 1) / mean
    seconds = min(max(machine.seconds, MIN_REQUESTS / (rate * len(LIGHT))), machine.most_seconds)
    streams = []
    for tenant in LIGHT:
        rng = random.Random(f"{tenant}/{load}/{seed}")
        stream, now = [], rng.expovariate(rate)
        while now < seconds:
            stream.append(Arrival(now, tenant, *rng.choice(machine.lengths)))
            now += rng.expovariate(rate)
        streams.append(stream)
    return Traffic(merge(*streams), seconds, (machine.flood,))


def measure_capacity(machine: Machine) -> float:
    """Weighted tokens per second of the flood alone."""
    outcome = machine.measure("fair", Traffic((), machine.seconds, (machine.flood,)))
    first, last = outcome.samples[len(outcome.samples) // 4], outcome.samples[-1]
    tenant = machine.flood.tenant
    return (last.service[tenant] - first.service[tenant]) / (last.at - first.at)


def add_load(report: Report, machine: Machine, traffic: Traffic, load: float, num_runs: int) -> None:
    """Measure one load and add its rows."""
    fair, fcfs, without, alone = [], [], [], []
    for _ in range(num_runs):
        fair.append(machine.measure("fair", traffic))
        fcfs.append(machine.measure("fcfs", traffic))
        without.append(machine.measure("fair", traffic.alone(*LIGHT)))
        alone.append(machine.measure("fair", traffic.alone(LIGHT[0])))
    case = f"{machine.name}: {load:.0%} of a fair share each, beside {NUM_OUTSTANDING} of a flood"

    def add(metric: str, unit: str, against: str, value: float, baseline: float, ratio: float) -> None:
        if value > 0 and baseline > 0:
            against = f"{against}: {baseline:,.4g}"
            report.add(case, metric, value, unit, against=against, ratio=ratio, runs=num_runs)

    speed, other_speed = (statistics.median(o.throughput for o in outcomes) for outcomes in (fair, fcfs))
    add("throughput", "tokens/s", "fcfs", speed, other_speed, speed / other_speed)
    baselines = (("without the flood", without, LIGHT), ("one of them alone", alone, LIGHT[:1]))
    for of, name in ((first_token_seconds, "TTFT"), (token_gaps, "TBT")):
        for against, outcomes, tenants in (*baselines, ("fcfs", fcfs, LIGHT)):
            for percent in PERCENTILES if against != "fcfs" else PERCENTILES[-1:]:
                value, baseline = (
                    statistics.median(_percentiles(each, of, tenants, percent)) for each in (fair, outcomes)
                )
                add(f"P{percent} {name} of light tenants", "s", against, value, baseline, baseline / value)


def _percentiles(
    outcomes: Sequence[Outcome],
    of: Callable[[Outcome, Sequence[str]], list[float]],
    tenants: Sequence[str],
    percent: int,
) -> Iterator[float]:
    """One percentile of each run; 0 where it has nothing to take one of."""
    for outcome in outcomes:
        values = of(outcome, tenants)
        yield percentile(values, percent) if values else 0.0
