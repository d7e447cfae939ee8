"""The step composer: what it gives to whom, for any processes, limits and costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmos.cost import CostModel, StepWork
from llmos.params import MAX_STRETCH, MIN_PROMPT_TOKENS, SMALL_REST
from llmos.proc.pcb import Pid, Process
from llmos.sched import batch
from llmos.sched.batch import BatchLimits
from syscalls.sampling import Sampling


class Share(NamedTuple):
    """A share, with names."""

    process: Process
    num_tokens: int


def compose(*args: Any) -> list[Share]:
    """The composer's shares, with names."""
    return [Share(*share) for share in batch.compose(*args)]


def make_process(pid: int, num_tokens: int, num_scheduled: int, num_pending: int = 0) -> Process:
    """A process with a history of so many tokens, of which the device was given some."""
    process = Process(
        pid=Pid(pid), tenant="test", session=None, model="test", device="sim:0", sampling=Sampling(seed=0),
        stop_tokens=frozenset(), spawned_at=0.0, arrival=pid, tokens=[1] * num_tokens, turn_start=num_tokens,
        max_tokens=1000,
    )  # fmt: skip
    process.num_scheduled, process.num_pending = num_scheduled, num_pending
    return process


def decoding(pid: int, context: int) -> Process:
    """A process that has one token to compute: the one that the step in flight samples."""
    return make_process(pid, context, context, num_pending=1)


def prompted(pid: int, num_tokens: int, num_scheduled: int = 0) -> Process:
    """A process whose prompt is not computed to the end."""
    return make_process(pid, num_tokens, num_scheduled)


def work_of(shares: list[Share]) -> StepWork:
    """What a step of these shares holds."""
    work = StepWork()
    for process, num_tokens in shares:
        work = work.with_row(process.num_scheduled, num_tokens)
    return work


def most_seconds(shares: list[Share], limits: BatchLimits, cost: CostModel) -> float:
    """How long prompts may make a step with the decodes of these shares."""
    decodes = work_of([share for share in shares if share.process.num_pending])
    return max(limits.target_seconds, MAX_STRETCH * cost.step_seconds(decodes))


def most_seconds_to_end(shares: list[Share], limits: BatchLimits, cost: CostModel) -> float:
    """How long it may take for the sake of a prompt's end, rounding aside."""
    decodes = cost.step_seconds(work_of([share for share in shares if share.process.num_pending]))
    most = most_seconds(shares, limits, cost)
    return (most + SMALL_REST * (most - decodes)) * (1 + 1e-9)


PROCESSES = st.lists(
    st.one_of(
        st.builds(lambda context: (1, context, 0), st.integers(1, 3000)),
        st.builds(lambda start, rest: (0, start, rest), st.integers(0, 3000), st.integers(2, 1000)),
    ),
    max_size=12,
).map(
    lambda drawn: [
        decoding(pid, start) if is_decoding else prompted(pid, start + rest, start)
        for pid, (is_decoding, start, rest) in enumerate(drawn)
    ]
)
LIMITS = st.builds(
    BatchLimits,
    max_step_tokens=st.integers(1, 600),
    max_rows=st.integers(1, 14),
    max_chunk_tokens=st.integers(1, 600),
    target_seconds=st.floats(1e-4, 2),
)
COSTS = st.builds(
    CostModel,
    base=st.floats(0, 0.2),
    per_token=st.floats(0, 0.01),
    per_row=st.floats(0, 0.01),
    per_context_token=st.floats(0, 1e-5),
    per_pair=st.floats(0, 1e-6),
)


@given(PROCESSES, LIMITS, COSTS)
def test_limits_hold(running: list[Process], limits: BatchLimits, cost: CostModel) -> None:
    """Tokens, rows and chunks stay within their limits; one share for a process, in the order given."""
    shares = compose(running, limits, cost.step_seconds)
    assert sum(share.num_tokens for share in shares) <= limits.max_step_tokens
    assert len(shares) <= limits.max_rows
    decodes = [share for share in shares if share.process.num_pending]
    prompts = shares[len(decodes) :]
    assert all(share.num_tokens == 1 for share in decodes)
    assert all(
        1 <= share.num_tokens <= min(limits.max_chunk_tokens, share.process.num_uncomputed)
        for share in prompts
    )
    for part in (decodes, prompts):
        pids = [share.process.pid for share in part]
        assert pids == sorted(set(pids))


@given(PROCESSES, LIMITS, COSTS)
def test_decodes_come_first(running: list[Process], limits: BatchLimits, cost: CostModel) -> None:
    """Every process that decodes has its token before a prompt has any, whatever the target."""
    shares = compose(running, limits, cost.step_seconds)
    wanting = [process.pid for process in running if process.num_pending]
    room = min(limits.max_step_tokens, limits.max_rows)
    assert [share.process.pid for share in shares][: len(wanting[:room])] == wanting[:room]


@given(PROCESSES, LIMITS, COSTS)
def test_prompts_beside_decodes_keep_to_the_target(
    running: list[Process], limits: BatchLimits, cost: CostModel
) -> None:
    """Prompts beyond the guaranteed tokens keep a step to the target, or to twice what its decodes take.

    The last one may take an eighth more of the time that prompts have, to be done.
    """
    shares = compose(running, limits, cost.step_seconds)
    prompt_tokens = sum(share.num_tokens for share in shares if not share.process.num_pending)
    if any(share.process.num_pending for share in shares) and prompt_tokens > MIN_PROMPT_TOKENS:
        last, num_tokens = shares[-1]
        is_done = num_tokens == last.num_uncomputed or num_tokens == limits.max_chunk_tokens
        is_done = is_done or sum(share.num_tokens for share in shares) == limits.max_step_tokens
        most = most_seconds_to_end if is_done else most_seconds
        assert cost.step_seconds(work_of(shares)) <= most(shares, limits, cost)


@given(PROCESSES, LIMITS, COSTS)
def test_nothing_is_left_out_that_fits(running: list[Process], limits: BatchLimits, cost: CostModel) -> None:
    """A prompt gets less than it wants only at a limit, or where one more token would miss the target."""
    shares = compose(running, limits, cost.step_seconds)
    given_tokens = {share.process.pid: share.num_tokens for share in shares}
    full = sum(given_tokens.values()) == limits.max_step_tokens or len(shares) == limits.max_rows
    for process in running:
        count = given_tokens.get(process.pid, 0)
        if full or process.num_pending or count == min(process.num_uncomputed, limits.max_chunk_tokens):
            continue
        before = work_of([share for share in shares if share.process.pid != process.pid])
        longer = cost.step_seconds(before.with_row(process.num_scheduled, count + 1))
        assert any(share.process.num_pending for share in shares)
        assert longer > most_seconds(shares, limits, cost)
        break  # those behind the first that was cut wait for it


@given(PROCESSES, LIMITS, COSTS)
def test_prompts_progress(running: list[Process], limits: BatchLimits, cost: CostModel) -> None:
    """Where there is room beside the decodes, prompts get the guaranteed tokens or all that they want."""
    shares = compose(running, limits, cost.step_seconds)
    decodes = sum(share.process.num_pending for share in shares)
    prompts = [process for process in running if not process.num_pending]
    rows = max(0, limits.max_rows - decodes)
    wanted = sum(min(process.num_uncomputed, limits.max_chunk_tokens) for process in prompts[:rows])
    least = min(wanted, MIN_PROMPT_TOKENS, limits.max_step_tokens - decodes)
    assert sum(share.num_tokens for share in shares) - decodes >= least


@given(PROCESSES, LIMITS, COSTS, st.lists(st.sampled_from("abc"), min_size=12, max_size=12))
def test_prompts_go_by_their_tenants_standing(
    running: list[Process], limits: BatchLimits, cost: CostModel, tenants: list[str]
) -> None:
    """Decodes are what they were; prompts are as if they had come in the order of what their tenants got."""
    standing = {"a": 20.0, "b": 10.0, "c": 10.0}.__getitem__
    for process, tenant in zip(running, tenants, strict=False):
        process.tenant = tenant
    by_standing = sorted(running, key=lambda process: standing(process.tenant))
    decodes = [process for process in running if process.num_pending]
    prompts = [process for process in by_standing if not process.num_pending]
    expected = compose(decodes + prompts, limits, cost.step_seconds)
    assert compose(running, limits, cost.step_seconds, standing) == expected
    assert compose(running, limits, cost.step_seconds, lambda tenant: 1.0) == compose(
        running, limits, cost.step_seconds
    )


@given(PROCESSES, LIMITS, COSTS, st.floats(1, 10))
def test_a_longer_target_gives_no_less(
    running: list[Process], limits: BatchLimits, cost: CostModel, factor: float
) -> None:
    """Raising the target never takes tokens from a step."""
    longer = evolve(limits, target_seconds=factor * limits.target_seconds)
    counts = [
        sum(share.num_tokens for share in compose(running, which, cost.step_seconds))
        for which in (limits, longer)
    ]
    assert counts[0] <= counts[1]


@given(PROCESSES, LIMITS, COSTS)
def test_time_matters_only_beside_decodes(
    running: list[Process], limits: BatchLimits, cost: CostModel
) -> None:
    """Where nobody decodes, or nothing is known of time, or there is no target, only counts limit a step."""
    unlimited = compose(running, limits)
    assert compose(running, evolve(limits, target_seconds=math.inf), cost.step_seconds) == unlimited
    prompts = [process for process in running if not process.num_pending]
    assert compose(prompts, limits, cost.step_seconds) == compose(prompts, limits)


def test_a_prompt_meets_a_decode() -> None:
    """At 1 ms a token and a target of 50 ms, one prompt gets 49 tokens beside a decode, the next none."""
    running = [prompted(1, 300), decoding(2, 100), prompted(3, 300)]
    limits = BatchLimits(512, 8, 512, target_seconds=0.05)
    shares = compose(running, limits, CostModel(per_token=0.999e-3).step_seconds)
    assert [(share.process.pid, share.num_tokens) for share in shares] == [(2, 1), (1, 49)]
    alone = compose([running[0], running[2]], limits, CostModel(per_token=1e-3).step_seconds)
    assert [(share.process.pid, share.num_tokens) for share in alone] == [(1, 300), (3, 212)]


def test_decodes_that_take_long_leave_prompts_as_much() -> None:
    """Four decodes of 20 ms each, with a target of 50 ms: the step may take 160 ms, so a prompt gets 80."""
    running = [*(decoding(pid, 10) for pid in range(4)), prompted(9, 300)]
    limits = BatchLimits(512, 8, 512, target_seconds=0.05)
    shares = compose(running, limits, CostModel(per_token=0.999e-3, per_row=19e-3).step_seconds)
    assert shares[-1].num_tokens == 61  # the prompt is a row, too
