"""Courtesy in steps: who waits for a prompt how long, and how often, beside a tenant over its share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.cost import CostModel, StepWork
from llmos.params import SMALL_REST
from llmos.proc.pcb import Pid, Process
from llmos.sched.batch import BatchLimits, Share, compose
from llmos.sched.courtesy import MAX_LONG_WAITS, MAX_STEPS_HELD, TOKENS_FOR_A_LONG_WAIT, Courtesy
from syscalls.sampling import Sampling

COST = CostModel(base=0.042, per_token=2e-4, per_context_token=8.7e-7)  # of a large model on a GPU
LIMITS = BatchLimits(512, 64, 512, target_seconds=0.1)


def make_process(pid: int, tenant: str, num_tokens: int, num_scheduled: int, num_pending: int) -> Process:
    """A process with a history of so many tokens, of which the device was given some."""
    process = Process(
        pid=Pid(pid), tenant=tenant, session=None, model="test", device="sim:0", sampling=Sampling(seed=0),
        stop_tokens=frozenset(), spawned_at=0.0, arrival=pid, tokens=[1] * num_tokens, turn_start=num_tokens,
        max_tokens=1000,
    )  # fmt: skip
    process.num_scheduled, process.num_pending = num_scheduled, num_pending
    return process


def decoding(pid: int, tenant: str) -> Process:
    """A process that has one token to compute."""
    return make_process(pid, tenant, 350, 350, num_pending=1)


def prompted(pid: int, tenant: str, num_tokens: int = 256) -> Process:
    """A process whose prompt has yet to be computed."""
    return make_process(pid, tenant, num_tokens, 0, num_pending=0)


def crowd(num_flood: int = 20, num_light: int = 3) -> list[Process]:
    """Decodes of a flood and of light tenants."""
    flood = [decoding(pid, "flood") for pid in range(num_flood)]
    return flood + [decoding(100 + pid, f"light-{pid}") for pid in range(num_light)]


def seconds_of(shares: list[Share]) -> float:
    """What a step of these shares takes."""
    work = StepWork()
    for process, num_tokens in shares:
        work = work.with_row(process.num_scheduled, num_tokens)
    return COST.step_seconds(work)


def is_flood(tenant: str) -> bool:
    return tenant == "flood"


def step(running: list[Process], courtesy: Courtesy) -> list[Share]:
    """One step on that device; least served are those that are not the flood."""
    return compose(running, LIMITS, COST.step_seconds, lambda tenant: float(is_flood(tenant)), courtesy)


def polite_seconds(running: list[Process]) -> float:
    """The longest step that nobody calls long, a prompt's small rest included."""
    decodes = seconds_of([(process, 1) for process in running])
    return decodes + (1 + SMALL_REST) * (Courtesy().polite_seconds(decodes) - decodes) + 1e-9


@given(st.lists(st.integers(0, 2), min_size=1, max_size=200), st.integers(1, 4))
def test_long_waits_are_seldom(prompts: list[int], num_light: int) -> None:
    """However many prompts come, of one in so many tokens a light tenant waits for a long step."""
    courtesy, running = Courtesy(is_flood), crowd(num_light=num_light)
    num_long = num_tokens = 0
    for pid, num_prompts in enumerate(prompts):
        more = [prompted(1000 + 10 * pid + i, f"light-{i}") for i in range(num_prompts)]
        shares = step(running + more, courtesy)
        num_tokens += num_light
        num_long += num_light * (seconds_of(shares) > polite_seconds(running))
    assert num_long <= num_tokens / TOKENS_FOR_A_LONG_WAIT


def test_a_light_prompt_goes_at_once_when_nobody_has_had_to_wait_lately() -> None:
    """All of it in one step, which is long; the next one takes more steps, none of them long."""
    courtesy, running = Courtesy(is_flood), crowd()
    for _ in range(TOKENS_FOR_A_LONG_WAIT):  # three light ones: enough for one step that is long to all
        step(running, courtesy)
    assert step([*running, prompted(500, "light-3")], courtesy)[-1][1] == 256
    for _ in range(2):
        shares = step([*running, prompted(501, "light-3")], courtesy)
        assert 0 < shares[-1][1] < 256
        assert seconds_of(shares) <= polite_seconds(running)


def test_rows_of_the_flood_sit_out_for_a_prompt_and_not_for_long() -> None:
    """Some of its rows make room for light prompts, some steps in a row; then all are back for one."""
    courtesy, running = Courtesy(is_flood), crowd()
    for i in range(3 * (MAX_STEPS_HELD + 1)):
        num_tokens = (256, 170, 85, 85)[i % (MAX_STEPS_HELD + 1)]
        shares = step([*running, prompted(500 + i, "light-3", num_tokens)], courtesy)
        tenants = [process.tenant for process, _ in shares]
        is_rest = i % (MAX_STEPS_HELD + 1) == MAX_STEPS_HELD
        assert (tenants.count("flood") == 20) == is_rest
        assert {"light-0", "light-1", "light-2"} <= set(tenants)


@given(st.floats(0, 500))
def test_nobody_over_their_share_means_no_courtesy(waited: float) -> None:
    """Where all are within their shares, or there is one tenant only, a step is what it is without."""
    running = [*crowd(), prompted(500, "light-3"), prompted(501, "flood")]
    alone = [process for process in running if process.tenant == "flood"]
    plain = compose(running, LIMITS, COST.step_seconds, lambda tenant: float(is_flood(tenant)))
    assert step(running, Courtesy(lambda tenant: False)) == plain
    assert step(alone, Courtesy(is_flood)) == compose(alone, LIMITS, COST.step_seconds)


def test_prompts_of_the_flood_are_always_polite() -> None:
    """However long nobody has had to wait."""
    courtesy, running = Courtesy(is_flood), crowd()
    for _ in range(10 * TOKENS_FOR_A_LONG_WAIT):
        step(running, courtesy)
    shares = step([*running, prompted(500, "flood")], courtesy)
    assert 0 < shares[-1][1] < 256
    assert seconds_of(shares) <= polite_seconds(running)


def test_long_waits_are_not_saved_up_for_ever() -> None:
    """After a quiet hour a burst of prompts may be long for as many rows as that, not for an hour's."""
    courtesy, running = Courtesy(is_flood), crowd(num_light=1)
    for _ in range(100 * TOKENS_FOR_A_LONG_WAIT):
        step(running, courtesy)
    num_long = 0
    for pid in range(50):
        shares = step([*running, prompted(500 + pid, "light-3")], courtesy)
        num_long += seconds_of(shares) > polite_seconds(running)
    assert num_long == pytest.approx(MAX_LONG_WAITS, abs=1)
