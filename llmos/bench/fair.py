"""`llmos bench fair`: what the fair policy gives to tenants that compete, beside first come, first served.

On the simulated device, on the virtual clock: the suites of VTC's evaluation on a device like theirs (7B on
an A10G, a pool of 10,000 tokens), and a flood. On the real driver: a flood and an overload of the built-in
model. What the virtual clock measures is exact and needs no second run; on the real driver the policies take
turns, and medians count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import trio
import trio.testing
from rich.console import Console
from rich.progress import track

from drivers.sim import DEFAULT_KV, SimDriver
from llmos.bench import fair_curve, suites
from llmos.bench.fairness import (
    contended_windows,
    first_token_seconds,
    jain,
    largest_gap,
    p99,
    service_differences,
    token_gaps,
)
from llmos.bench.in_process import settle_order
from llmos.bench.report import Report
from llmos.bench.traffic import Measure, Outcome, Policy, Traffic, observe
from llmos.config import Config, ConfigError
from llmos.cost import CopyCost, CostModel
from llmos.device import DriverLink
from llmos.kernel.driver_host import OpenLink

POOL_TOKENS = 10_000
# Of 7B in 16 bits on an A10G: near 880 tokens/s with 256 in and 256 out, as published; 5,000 prompt tokens/s;
# half a megabyte of keys and values for each token, at 600 GB/s.
COST = CostModel(base=0.042, per_token=2e-4, per_context_token=8.7e-7)
# Half a megabyte a token over PCIe 4 x16, as 32 bytes on the simulated device; room for 120,000 tokens.
HOST_COST = CopyCost(base=1e-5, bytes_per_second=32 * 24e9 / 2**19)
HOST_MIB = 4
ARENA = Path("../shared/data/vtc-multi-tenant/arena_clients.csv")
WINDOW_SECONDS = 60.0  # of Jain's index, on the simulated device
REAL_SECONDS, REAL_WINDOW_SECONDS = 20.0, 4.0  # on the real one, where a request takes a fraction of a second


@attrs.frozen
class Case:
    """One load, and what is reported of it beside throughput."""

    name: str
    traffic: Traffic
    light: tuple[str, ...] = ()  # tenants whose latency is compared with being alone
    has_difference: bool = False  # report the service difference of VTC's artifact


def simulated_cases(names: Sequence[str]) -> list[Case]:
    """The cases of the simulated device, or some of them; the arena's only where its data is. ConfigError."""
    makers: dict[str, Callable[[], Case]] = {
        "overload": lambda: Case("overload, 1.5 and 3 req/s", suites.of_rates(1.5, 3.0)),
        "overload-multi": lambda: Case(
            "overload of eight, 3 of 0.4 and 5 of 0.6 req/s", suites.of_rates(*3 * [0.4], *5 * [0.6])
        ),
        "weighted": lambda: Case("weights 1 to 4, 0.8 to 1.6 req/s", suites.weighted()),
        "on-off": lambda: Case("on and off, 0.5 beside 2 req/s", suites.on_off(0.5, 2.0), ("on-off",)),
        "flood": lambda: Case("flood of 64, four of 0.05 req/s", suites.flood(), suites.LIGHT),
        "arena": lambda: Case("arena, 27 clients", suites.arena(ARENA), has_difference=True),
    }
    for name in names:
        if name not in makers:
            raise ConfigError(f"case {name!r} is not one of {', '.join(makers)}")
    if "arena" in names and not ARENA.exists():
        raise ConfigError(f"{ARENA} does not exist")
    chosen = names or [name for name in makers if name != "arena" or ARENA.exists()]
    return [makers[name]() for name in chosen]


def real_cases() -> list[Case]:
    """The cases of the real driver."""
    return [
        Case("overload, 64 and 128 outstanding", suites.small_overload(REAL_SECONDS)),
        Case("flood of 64, four of 2 req/s", suites.small_flood(REAL_SECONDS), suites.LIGHT),
    ]


def simulate(policy: Policy, traffic: Traffic) -> Outcome:
    """Run on a simulated device, on the virtual clock."""

    def open_link(name: str) -> OpenLink:
        async def open_one() -> DriverLink:
            await trio.lowlevel.checkpoint()
            num_frames = POOL_TOKENS // DEFAULT_KV.tokens_per_page * DEFAULT_KV.frames_per_page
            return SimDriver(name=name, cost=COST, num_frames=num_frames, host_cost=HOST_COST)

        return open_one

    config = Config(device="sim", policy=policy, swap_mib=HOST_MIB)

    async def run() -> Outcome:
        settle_order()
        return await observe(config, "sim", traffic, sample_seconds=1.0, open_link=open_link)

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def serve(policy: Policy, traffic: Traffic) -> Outcome:
    """Run on the CPU's driver with the built-in model."""
    config = Config(device="cpu", policy=policy, max_running=32)
    return trio.run(partial(observe, config, "cpu", traffic, sample_seconds=0.1))


@attrs.frozen
class Numbers:
    """What one run of a policy, or the light tenants alone, has shown; NaN: there was none."""

    throughput: float
    jain_mean: float
    jain_least: float
    gap: float
    difference_mean: float
    difference_most: float
    first_token: float  # P99 over the light tenants' requests, seconds
    token_gap: float

    @classmethod
    def of(cls, case: Case, outcomes: Sequence[Outcome], window_seconds: float) -> Numbers:
        """Of one outcome, or of several that count as one: of light tenants that were alone."""
        windows = [
            jain(window.values())
            for outcome in outcomes
            for window in contended_windows(outcome, window_seconds)
        ]
        differences = service_differences(outcomes[0]) if case.has_difference else []
        firsts = [seconds for o in outcomes for seconds in first_token_seconds(o, case.light)]
        gaps = [seconds for o in outcomes for seconds in token_gaps(o, case.light)]
        return cls(
            throughput=statistics.fmean(outcome.throughput for outcome in outcomes),
            jain_mean=statistics.fmean(windows) if windows else NONE,
            jain_least=min(windows, default=NONE),
            gap=max(map(largest_gap, outcomes)),
            difference_mean=statistics.fmean(differences) if differences else NONE,
            difference_most=max(differences, default=NONE),
            first_token=p99(firsts) if firsts else NONE,
            token_gap=p99(gaps) if gaps else NONE,
        )


NONE = float("nan")
METRICS = (  # field, metric, unit, whether more is better
    ("throughput", "throughput", "tokens/s", True),
    ("jain_mean", "Jain index, mean of windows", "", True),
    ("jain_least", "Jain index, least of windows", "", True),
    ("gap", "largest gap of two that both wait", "weighted tokens", False),
    ("difference_mean", "service difference, mean", "weighted tokens/s", False),
    ("difference_most", "service difference, most", "weighted tokens/s", False),
    ("first_token", "P99 TTFT of light tenants", "s", False),
    ("token_gap", "P99 TBT of light tenants", "s", False),
)
LATENCIES = ("first_token", "token_gap")


def median_of(runs: Sequence[Numbers]) -> Numbers:
    """Each number's median."""
    columns = zip(*map(attrs.astuple, runs), strict=True)
    return Numbers(*(statistics.median(column) for column in columns))


Baselines = dict[str, Numbers]  # by what the fair policy is compared with


def measure_case(
    case: Case, measure: Measure, window_seconds: float, num_runs: int
) -> tuple[Numbers, Baselines]:
    """The fair policy, and what it is compared with.

    That is first come, first served; and for light tenants, if there are any, each of them "alone", and all
    of them "without others": what is left of the difference to that is the others' doing.
    """
    fair: list[Numbers] = []
    baselines: dict[str, list[Numbers]] = {}

    def note(name: str, *outcomes: Outcome) -> None:
        baselines.setdefault(name, []).append(Numbers.of(case, outcomes, window_seconds))

    for _ in range(num_runs):
        fair.append(Numbers.of(case, [measure("fair", case.traffic)], window_seconds))
        note("fcfs", measure("fcfs", case.traffic))
        if case.light:
            note("alone", *(measure("fair", case.traffic.alone(tenant)) for tenant in case.light))
        if len(case.light) > 1:
            note("without others", measure("fair", case.traffic.alone(*case.light)))
    return median_of(fair), {name: median_of(runs) for name, runs in baselines.items()}


def add_rows(report: Report, case: str, fair: Numbers, baselines: Baselines, num_runs: int) -> None:
    """A row for each number and baseline that there is; less traffic is a baseline of latencies alone."""
    for field, metric, unit, is_more_better in METRICS:
        value = getattr(fair, field)
        for name, numbers in baselines.items():
            baseline = getattr(numbers, field)
            if not (value > 0 and baseline > 0) or (name != "fcfs" and field not in LATENCIES):
                continue
            ratio = value / baseline if is_more_better else baseline / value
            against = f"{name}: {baseline:,.4g}"
            report.add(case, metric, value, unit, against=against, ratio=ratio, runs=num_runs)


def curve_machines(device: str) -> list[fair_curve.Machine]:
    """Where the curve of the light tenants' loads is measured. Raises ConfigError."""
    found = []
    if device in ("sim", "all"):
        lengths = fair_curve.read_lengths(ARENA, 1)
        found.append(fair_curve.Machine("simulated A10G", simulate, lengths, 300.0, 1500.0))
    if device in ("cpu", "all"):
        lengths = fair_curve.read_lengths(ARENA, 4)  # of a larger model's answers
        found.append(fair_curve.Machine("cpu", serve, lengths, REAL_SECONDS / 2, 0.75 * REAL_SECONDS))
    return found


def main(
    *, device: str, sections: Sequence[str], cases: Sequence[str], light_loads: Sequence[float],
    json_path: str | None, num_runs: int,
) -> int:  # fmt: skip
    """Measure on one device, or on the simulated one and then the CPU; print the table, write the rows."""
    report = Report("fair")
    if json_path:
        report.open_json(json_path)
    plan: list[Callable[[], None]] = []

    def plan_case(where: str, case: Case, measure: Measure, window_seconds: float, runs: int) -> None:
        def run() -> None:
            fair, baselines = measure_case(case, measure, window_seconds, runs)
            add_rows(report, f"{where}: {case.name}", fair, baselines, runs)

        plan.append(run)

    def plan_curve(machine: fair_curve.Machine, runs: int) -> None:
        capacity: list[float] = []
        plan.append(lambda: capacity.append(fair_curve.measure_capacity(machine)))
        for load in light_loads:

            def run(load: float = load) -> None:
                traffic = fair_curve.light_traffic(machine, load, capacity[0])
                fair_curve.add_load(report, machine, traffic, load, runs)

            plan.append(run)

    if "cases" in sections and device in ("sim", "all"):
        for case in simulated_cases(cases):
            plan_case("simulated A10G", case, simulate, WINDOW_SECONDS, 1)
    if "cases" in sections and device in ("cpu", "all"):
        for case in real_cases():
            plan_case("cpu", case, serve, REAL_WINDOW_SECONDS, num_runs)
    if "curve" in sections and (ARENA.exists() or "cases" not in sections):
        for machine in curve_machines(device):
            plan_curve(machine, 1 if machine.measure is simulate else num_runs)
    for run in track(plan, "bench fair", transient=True, console=Console(stderr=True)):
        run()
    report.print_table()
    return 0
