"""What if copies between tiers run beside steps, in any order? None meets a step, and none waits in vain."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from llmos.proc.lifecycle import ProcState
from llmos.sched.messages import Cont, Kill, Stop, Sweep, WriteInput
from llmos.sched.preemption import Switching
from tests.sched.step_watch import SIZE, DrivenCore, open_driven_core

Act = tuple[str, int, int]

ACTS = st.one_of(
    st.tuples(st.just("spawn"), st.integers(1, 5 * SIZE), st.integers(1, 5 * SIZE)),
    st.tuples(st.just("chat"), st.integers(1, 5 * SIZE), st.integers(1, 2 * SIZE)),
    st.tuples(st.just("siblings"), st.integers(1, 3 * SIZE), st.integers(1, 2 * SIZE)),
    st.tuples(
        st.sampled_from(["kill", "stop", "cont", "write", "fork"]), st.integers(0, 9), st.integers(1, 9)
    ),
    st.tuples(st.just("sweep"), st.just(0), st.just(0)),
    st.tuples(st.just("plan"), st.just(0), st.just(0)),
    *2 * [st.tuples(st.just("step"), st.integers(0, 3), st.integers(0, 19))],
    st.tuples(st.just("copy"), st.integers(0, 9), st.just(0)),
)


def act(driven: DrivenCore, name: str, number: int, other: int) -> None:
    """Let one thing happen. Refusals, of who has exited say, are part of life."""
    core, processes = driven.core, driven.processes
    match name:
        case "spawn":
            driven.spawn(number, other)
        case "chat":
            driven.spawn(number, other, interactive=True)
        case "siblings":
            driven.spawn(number, other, 2)
        case "sweep":
            core._handle(Sweep(0.0))
        case "plan":
            driven.plan()
        case "step":
            for _ in range(1 + number % 4):
                driven.end_step(stops=other % 10 == 9)
                while driven.plan() and other % 4:  # else the device is about to be idle
                    pass
        case "copy":
            for _ in range(1 + number % 4):
                driven.end_copy(number)
        case "fork" if processes:
            driven.fork(processes[number % len(processes)])
        case _ if processes:
            process = processes[number % len(processes)]
            command = {
                "kill": Kill(process, "killed", lambda error: None),
                "stop": Stop(process, lambda error: None),
                "cont": Cont(process, lambda error: None),
                "write": WriteInput(process, tuple(range(other)), other, lambda error: None),
            }[name]
            core._handle(command)


async def live(acts: list[Act], switching: Switching, steps_in_flight: int) -> DrivenCore:
    """Carry acts out, see everybody to the end, and count what is left."""
    driven = await open_driven_core(switching=switching, steps_in_flight=steps_in_flight)
    for each in acts:
        act(driven, *each)
    for process in driven.processes:
        driven.core._handle(Cont(process, lambda error: None))
    driven.finish()
    for process in driven.processes:
        assert process.state is ProcState.ZOMBIE or process.turn_is_over, process
        driven.core._handle(Kill(process, "over", lambda error: None))
    driven.finish()
    assert len(driven.ended) == len(driven.processes)
    memory = driven.core.statistics().memory
    assert memory is not None
    assert memory.num_free + memory.num_cached == memory.num_frames
    driven.core.residents.check_integrity()
    return driven


@settings(max_examples=300)
@given(
    acts=st.lists(ACTS, max_size=40),
    switching=st.sampled_from(["async", "auto", "sync"]),
    steps_in_flight=st.integers(1, 3),
)
def test_no_copy_meets_a_step_and_none_waits_in_vain(
    acts: list[Act], switching: Switching, steps_in_flight: int
) -> None:
    """Each copy waits for the steps that use its frames, and for no other; no later step uses them."""
    trio.run(live, acts, switching, steps_in_flight, clock=MockClock(autojump_threshold=0))


def lively(seed: int) -> list[Act]:
    """Many acts, in an order of their own; more of them than Hypothesis draws."""
    rng = random.Random(seed)
    acts: list[Act] = []
    names = ["spawn", "chat", "siblings", "fork", "write", "sweep", "plan", *4 * ["step"], *4 * ["copy"]]
    for _ in range(400):
        name = rng.choice(names)
        acts.append((name, rng.randrange(1, 20), rng.randrange(1, 20)))
    return acts


@pytest.mark.parametrize("seed", range(4))
async def test_copies_overtake_steps_and_wait_for_steps(autojump_clock, seed: int) -> None:
    """Both come about in such lives: else what is checked of them would be nothing."""
    driven = await live(lively(seed), "async", 2)
    assert driven.num_overtaking >= 10
    assert driven.num_waiting >= 10


@pytest.mark.parametrize("seed", range(4))
async def test_in_turn(autojump_clock, seed: int) -> None:
    """With synchronous switching no step is sent while a copy runs, and no copy overtakes a step."""
    driven = await live(lively(seed), "sync", 2)
    assert driven.num_copies >= 10
