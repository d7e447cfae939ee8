"""The fairness benchmark: its metrics against their definitions, and a virtual clock that repeats itself."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.bench.fair import NONE, Case, Numbers, add_rows, measure_case, simulate, simulated_cases
from llmos.bench.fair_curve import (
    Machine,
    add_load,
    light_traffic,
    measure_capacity,
    parse_loads,
    read_lengths,
)
from llmos.bench.fairness import contended_windows, jain, largest_gap, service_differences
from llmos.bench.report import Report
from llmos.bench.suites import LIGHT, PHASE_SECONDS, merge, on_off, poisson, weighted
from llmos.bench.traffic import Arrival, Flood, Outcome, Request, Sample, Traffic
from llmos.config import ConfigError
from llmos.sched.accounts import weigh

SHARES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9)


@given(shares=SHARES, factor=st.floats(0.1, 10))
def test_jain(shares: list[float], factor: float) -> None:
    """Between 1/n and 1, whatever the unit; 1 for equals, 1/n where one has everything."""
    assert 1 / len(shares) - 1e-9 <= jain(shares) <= 1 + 1e-9
    assert jain([factor * share for share in shares]) == pytest.approx(jain(shares))
    assert jain([factor] * len(shares)) == pytest.approx(1)
    assert jain([factor] + [0.0] * (len(shares) - 1)) == pytest.approx(1 / len(shares))


def outcome_of(samples: list[Sample], seconds: float, requests: list[Request] | None = None) -> Outcome:
    """An outcome with made-up samples; tenant b weighs 2."""
    return Outcome(Traffic((), seconds, weights={"b": 2.0}), requests or [], samples, 0, 0)


STEPS = st.lists(
    st.tuples(st.tuples(*3 * [st.integers(0, 9)]), st.frozensets(st.sampled_from("abc"))),
    min_size=1,
    max_size=25,
)


@given(steps=STEPS)
def test_the_largest_gap_is_over_all_intervals(steps: list) -> None:
    """It is what one finds by trying every pair of tenants and every interval."""
    samples, totals = [], dict.fromkeys("abc", 0.0)
    for at, (served, waiting) in enumerate(steps):
        totals = {tenant: totals[tenant] + more for tenant, more in zip("abc", served, strict=True)}
        samples.append(Sample(float(at), totals, waiting))
    expected = 0.0
    for one, other in combinations("abc", 2):
        for first in range(len(samples)):
            for last in range(first, len(samples)):
                if all({one, other} <= sample.waiting for sample in samples[first : last + 1]):
                    gained = {
                        tenant: (samples[last].service[tenant] - samples[first].service[tenant])
                        / (2 if tenant == "b" else 1)
                        for tenant in (one, other)
                    }
                    expected = max(expected, abs(gained[one] - gained[other]))
    assert largest_gap(outcome_of(samples, len(steps))) == expected


def test_windows_are_contended_where_two_wait_all_the_time() -> None:
    """Service by weight of those that always waited; a window in which one paused has one tenant less."""
    samples = [
        Sample(
            float(at),
            {"a": 10.0 * at, "b": 10.0 * at, "c": float(at)},
            frozenset("abc") if at < 45 else frozenset("ab" if at % 7 else "b"),
        )
        for at in range(81)
    ]
    found = list(contended_windows(outcome_of(samples, 80.0), 20.0))
    assert found == [{"a": 200.0, "b": 100.0, "c": 20.0}]


def test_the_service_difference_counts_what_was_asked_for() -> None:
    """One has 256 tokens in and out in a minute, one has asked for as much and has none, one for a tenth."""
    requests = [
        Request(Arrival(1.0, "served", 256, 256), [30.0 + 20 * i / 255 for i in range(256)]),
        Request(Arrival(2.0, "starved", 256, 256)),
        Request(Arrival(3.0, "modest", 16, 5)),
    ]
    (first,) = service_differences(outcome_of([], 60.0, requests))
    assert first == pytest.approx((768 + 26) / 60)


def test_suites_are_fixed() -> None:
    """The same requests every time, in order; one that is off sends nothing."""
    assert weighted() == weighted()
    arrivals = merge(poisson("a", 5.0, 100.0), poisson("b", 2.0, 100.0))
    assert [a.at for a in arrivals] == sorted(a.at for a in arrivals)
    assert 400 < sum(a.tenant == "a" for a in arrivals) < 600
    pausing = [a.at for a in on_off(5.0, 1.0).arrivals if a.tenant == "on-off"]
    assert pausing
    assert all(at // PHASE_SECONDS % 2 == 0 for at in pausing)
    with pytest.raises(ConfigError, match="'nothing'"):
        simulated_cases(["nothing"])


def test_the_virtual_clock_repeats_itself_and_a_flood_does_not_hold_up_others() -> None:
    """Ten seconds: two runs are one; whoever sends one request waits less than where the first is first."""
    traffic = Traffic((Arrival(5.0, "light", 64, 8),), 10.0, (Flood("flood", 64, 128, 64),))
    fair, again, fcfs = (simulate(policy, traffic) for policy in ("fair", "fair", "fcfs"))
    assert fair == again
    times = [
        next(r.token_times for r in outcome.requests if r.arrival.tenant == "light")
        for outcome in (fair, fcfs)
    ]
    assert len(times[0]) == 8
    assert not times[1] or times[0][0] < times[1][0]
    computed = sum(len(request.token_times) for request in fair.requests)
    assert fair.num_tokens >= computed > 0
    assert simulate("fair", traffic.alone("light")).requests[0].token_times[0] < times[0][0]


def test_baselines_of_light_tenants() -> None:
    """Several are measured alone, and all of them without the others; one is its own baseline."""
    arrivals = (Arrival(0.0, "a", 8, 2), Arrival(0.0, "b", 8, 2))
    traffic = Traffic(arrivals, 1.0, (Flood("flood", 2, 8, 8),))
    _, baselines = measure_case(Case("two", traffic, ("a", "b")), simulate, 1.0, 1)
    assert list(baselines) == ["fcfs", "alone", "without others"]
    assert baselines["alone"].first_token <= baselines["without others"].first_token
    assert traffic.alone("a", "b").floods == ()
    assert traffic.alone("flood").arrivals == ()
    _, baselines = measure_case(Case("one", traffic, ("a",)), simulate, 1.0, 1)
    assert list(baselines) == ["fcfs", "alone"]


def test_rows_say_what_they_are_against() -> None:
    """Better is above one whichever way a metric goes; what was not measured has no row."""
    fair = Numbers(100.0, 0.99, 0.9, 10.0, NONE, NONE, 2.0, 0.1)
    fcfs = Numbers(100.0, 0.66, 0.5, 50.0, NONE, NONE, 8.0, 0.1)
    alone = Numbers(10.0, NONE, NONE, 0.0, NONE, NONE, 1.0, 0.05)
    report = Report("fair")
    add_rows(report, "case", fair, {"fcfs": fcfs, "alone": alone}, 1)
    ratios = {(row.metric, row.against.split(":")[0]): row.ratio for row in report.rows}
    assert ratios == {
        ("throughput", "fcfs"): 1.0,
        ("Jain index, mean of windows", "fcfs"): pytest.approx(1.5),
        ("Jain index, least of windows", "fcfs"): pytest.approx(1.8),
        ("largest gap of two that both wait", "fcfs"): 5.0,
        ("P99 TTFT of light tenants", "fcfs"): 4.0,
        ("P99 TTFT of light tenants", "alone"): 0.5,
        ("P99 TBT of light tenants", "fcfs"): 1.0,
        ("P99 TBT of light tenants", "alone"): 0.5,
    }


def small_machine(lengths: list[tuple[int, int]], seconds: float, most_seconds: float) -> Machine:
    """A simulated device; nothing is measured there but by `add_load` and the like."""
    return Machine("sim", simulate, lengths, seconds, most_seconds)


@given(load=st.floats(0.1, 1.0), capacity=st.floats(500.0, 2000.0), seed=st.integers(0, 99))
def test_light_tenants_ask_for_their_load(load: float, capacity: float, seed: int) -> None:
    """All four together, near enough; lengths are pairs of the trace."""
    machine = small_machine([(100, 50), (1, 2), (10, 20)], 200.0, 4000.0)
    traffic = light_traffic(machine, load, capacity, seed)
    assert machine.seconds <= traffic.seconds <= machine.most_seconds
    assert {(a.prompt, a.output) for a in traffic.arrivals} <= set(machine.lengths)
    assert traffic.floods == (machine.flood,)
    assert set(Counter(a.tenant for a in traffic.arrivals)) <= set(LIGHT)
    assert list(traffic.arrivals) == sorted(traffic.arrivals, key=lambda a: (a.at, a.tenant))
    asked = sum(weigh(a.prompt, a.output) for a in traffic.arrivals) / traffic.seconds
    assert asked == pytest.approx(load * capacity * len(LIGHT) / 5, rel=0.6)
    assert traffic == light_traffic(machine, load, capacity, seed)


def test_the_curve_has_rows_of_each_baseline() -> None:
    """A short run of a load: throughput beside fcfs, latencies beside those without the flood, and alone."""
    machine = small_machine([(64, 16)], 12.0, 12.0)
    capacity = measure_capacity(machine)
    assert 0 < capacity < 64 * 4 / 0.042  # each step takes 42 ms, and gives nobody more than a token
    report = Report("fair")
    add_load(report, machine, light_traffic(machine, 0.5, capacity), 0.5, 1)
    found = Counter((row.metric, row.against.split(":")[0]) for row in report.rows)
    assert found == {
        ("throughput", "fcfs"): 1,
        **{
            (f"P{percent} {name} of light tenants", against): 1
            for percent in (50, 99)
            for name in ("TTFT", "TBT")
            for against in ("without the flood", "one of them alone", "fcfs")
            if percent == 99 or against != "fcfs"
        },
    }
    assert all(row.case == "sim: 50% of a fair share each, beside 64 of a flood" for row in report.rows)


def test_a_flood_takes_its_lengths_in_turn() -> None:
    """With two outstanding and three lengths, requests that begin have them one after the other."""
    lengths = ((8, 2), (16, 5), (4, 3))
    outcome = simulate("fair", Traffic((), 2.0, (Flood("flood", 2, 1, 1, lengths),)))
    sent = [(r.arrival.prompt, r.arrival.output) for r in outcome.requests]
    assert len(sent) > 6
    assert sent == [lengths[i % 3] for i in range(len(sent))]
    assert [len(r.token_times) for r in outcome.requests[:4]] == [2, 5, 3, 2]


def test_loads_of_the_curve_are_checked(tmp_path: Path) -> None:
    """Percentages; the error names the one that is none. Without the trace there is no curve."""
    assert parse_loads(" 2, 50,") == [0.02, 0.5]
    for wrong in ("0", "101", "half", "nan"):
        with pytest.raises(ConfigError, match=f"'{wrong}'"):
            parse_loads(f"25,{wrong}")
    with pytest.raises(ConfigError, match=r"/nowhere\.csv"):
        read_lengths(Path("/nowhere.csv"), 1)
    trace = tmp_path / "trace.csv"
    trace.write_text("prompt_tokens,output_tokens\n100,9\n3,200\n")
    assert read_lengths(trace, 4) == [(25, 2), (1, 50)]
