"""Giving way: who stops for whom, that nobody stops in vain, and what it does to the gap between tenants."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmos.proc.lifecycle import ProcState
from llmos.sched.accounts import Accounts
from llmos.sched.fair import LEVELS_TO_GIVE_WAY, NUM_QUANTA, TokenFair
from tests.sched.small_engine import SmallEngine

QUANTUM = 40.0
TENANTS = ("a", "b", "c")


def make_engine(
    num_frames: int, max_running: int, quantum: float = QUANTUM, weights: dict[str, float] | None = None
) -> SmallEngine:
    """An engine with a fair policy of a small quantum."""
    accounts = Accounts(weights or {})
    return SmallEngine(TokenFair(accounts, quantum), accounts, num_frames, max_running)


SPAWN = st.tuples(st.sampled_from(TENANTS), st.integers(1, 30), st.integers(1, 200), st.integers(-10, 10))


@settings(max_examples=40)
@given(
    spawns=st.lists(st.tuples(SPAWN, st.integers(0, 60)), min_size=1, max_size=15),
    num_frames=st.integers(240, 600),
    max_running=st.integers(1, 8),
    weights=st.dictionaries(st.sampled_from(TENANTS), st.sampled_from([0.5, 2.0, 4.0])),
)
@example(  # with one of "a" less, "b" does not run less than its share: its place went to another one of "a"
    spawns=[
        *[(("a", 1, 1, 0), 0), (("a", 1, 1, 0), 0), (("a", 24, 41, 0), 0), (("a", 1, 41, 0), 7)],
        *[(("b", 1, 34, 0), 0), (("b", 1, 34, 0), 0), (("b", 29, 33, 0), 0), (("a", 2, 16, 0), 0)],
        *[(("a", 1, 2, 0), 0), (("c", 1, 18, 0), 0), (("a", 1, 1, 0), 33)],
    ],
    num_frames=240,
    max_running=6,
    weights={},
)
def test_whoever_gives_way_should(
    spawns: list, num_frames: int, max_running: int, weights: dict[str, float]
) -> None:
    """Those that stop run, had their quantum, are not behind, and whom they stop for is admitted at once."""
    engine = make_engine(num_frames, max_running, weights=weights)
    for (tenant, prompt, output, nice), pause in spawns:
        engine.spawn(tenant, prompt, output, nice)
        for _ in range(pause):
            engine.step()
            view = engine.view()
            candidates = {c.pid: c for crew in view.running.values() for c in crew}
            running = {name: len(list(crew)) for name, crew in view.running.items()}
            stopped = [candidates[pid] for pid in engine.review()]
            if not stopped:
                continue
            assert all(candidate.service >= QUANTUM for candidate in stopped)
            head = engine.queue.members[engine.admit()[0]]
            counter = engine.accounts.of(head.tenant).counter
            for candidate in stopped:
                if candidate.tenant == head.tenant:
                    assert candidate.order[0] - engine.queue.order(head)[0] >= LEVELS_TO_GIVE_WAY
                    continue
                account, own = engine.accounts.of(candidate.tenant), engine.accounts.of(head.tenant)
                gap = account.counter - counter
                before, others = running[candidate.tenant], running.get(head.tenant, 0)
                running[candidate.tenant] -= 1
                is_equal = (before - 1) / account.weight >= (others + 1) / own.weight
                turns_round = gap > NUM_QUANTA * QUANTUM and before / account.weight > others / own.weight
                assert (is_equal and gap > -NUM_QUANTA * QUANTUM) or turns_round


@settings(max_examples=12)
@given(
    prompts=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    max_running=st.integers(1, 8),
    weights=st.tuples(*2 * [st.sampled_from([1.0, 2.0])]),
)
def test_the_gap_is_of_quanta_however_long_processes_are(
    prompts: tuple[int, int], max_running: int, weights: tuple[float, float]
) -> None:
    """Processes that never end fill the device; one who comes later has caught up, and stays so.

    Of a tenant that is ahead each process may finish the quantum that it has begun, and NUM_QUANTA more of
    gap are allowed; then all of its processes are in question. Without giving way the gap grows for ever.
    """
    gaps = {}
    for quantum in (QUANTUM, math.inf):
        engine = make_engine(10**6, max_running, quantum, dict(zip("ab", weights, strict=True)))
        for _ in range(2 * max_running):
            engine.spawn("a", prompts[0], 10**6)
        for _ in range(50):
            engine.step()
        for _ in range(2 * max_running):
            engine.spawn("b", prompts[1], 10**6)
        history = []
        for _ in range(600):
            engine.step()
            history.append(engine.served["a"] / weights[0] - engine.served["b"] / weights[1])
        gaps[quantum] = max(history) - min(history)
    slack = max_running * (2 * engine.policy.review_steps + max(prompts))
    assert gaps[QUANTUM] <= 2 * ((max_running + NUM_QUANTA) * QUANTUM + slack)
    assert gaps[math.inf] >= 2 * 599 / max(weights)


def test_equals_do_not_push_each_other_out() -> None:
    """Two tenants whose processes never end get half of the places each; then nobody switches again."""
    engine = make_engine(10**6, 6)
    for tenant in "ab":
        for _ in range(12):
            engine.spawn(tenant, 5, 10**6)
    for _ in range(200):
        engine.step()
    settled = engine.num_preemptions
    for _ in range(300):
        engine.step()
    assert engine.num_preemptions == settled


@settings(max_examples=20)
@given(max_running=st.integers(1, 5), num_levels=st.integers(0, 19))
def test_a_nicer_process_of_the_same_tenant_gives_way(max_running: int, num_levels: int) -> None:
    """By a few levels and after a quantum, and never for a process that is as nice."""
    engine = make_engine(10**6, max_running)
    for _ in range(max_running):
        engine.spawn("a", 5, 10**6, nice=num_levels)
    for _ in range(3):
        engine.step()
    urgent = engine.spawn("a", 5, 10**6)
    for _ in range(8):
        engine.step()
    assert not urgent.output
    for _ in range(int(QUANTUM)):
        engine.step()
    assert bool(urgent.output) == (num_levels >= LEVELS_TO_GIVE_WAY)
    assert engine.num_preemptions == (num_levels >= LEVELS_TO_GIVE_WAY)


def test_idle_memory_goes_first() -> None:
    """Nobody that runs gives way while memory of those that do not run would do."""
    engine = make_engine(100, 8)
    ahead = engine.spawn("a", 10, 70)
    for _ in range(30):
        engine.step()
    engine.set_state(ahead, ProcState.STOPPED)
    for _ in range(2):
        engine.spawn("a", 5, 10**6)
    engine.accounts.of("a").charge_output(1000)
    for _ in range(20):
        engine.step()
    engine.spawn("b", 40, 10)
    assert engine.review() == []
    engine.queue.forget(ahead)
    assert engine.review() == []  # it fits now
    assert engine.admit()


@pytest.mark.parametrize("nobody", ["waits", "runs"])
def test_there_must_be_two(nobody: str) -> None:
    """Where nobody waits, or nobody runs, nobody gives way."""
    engine = make_engine(1000, 2)
    engine.spawn("a", 5, 100)
    if nobody == "waits":
        engine.step()
    assert engine.review() == []


def test_who_runs_less_than_a_share_goes_before_small_differences() -> None:
    """One request after another of a light tenant is admitted at once beside a flood; not beyond some quanta.

    By counters alone its second one would wait until the flood has been served as much as its first.
    """
    engine = make_engine(10**6, 6)
    for _ in range(12):
        engine.spawn("a", 1, 10**6)
    for _ in range(60):
        engine.step()
    accounts = [engine.accounts.of(tenant) for tenant in "ab"]
    pids = []
    for surplus in (0.9, 1.1):
        pids.append(engine.spawn("b", 1, 10**6).pid)
        accounts[1].counter = accounts[0].counter + surplus * NUM_QUANTA * QUANTUM
        engine.review()
        engine.admit()
    running = {process.pid for process in engine.queue.running}
    assert pids[0] in running
    assert pids[1] not in running
