"""Token-fair residency: the counters' bound, weights, lifts, and what a flood does to others."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from functools import partial

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.sim import SimDriver
from llmos.cost import CopyCost
from llmos.ipc.credentials import PeerCredentials
from llmos.kernel import server
from llmos.proc.lifecycle import ProcState
from llmos.sched import commands
from llmos.sched.accounts import OUTPUT_WEIGHT, PROMPT_WEIGHT, Accounts
from llmos.sched.fair import SECONDS_PER_LEVEL, TokenFair
from llmos.sched.policy import Candidate, FirstComeFirstServed, ResidencyPolicy, View
from syscalls.client import Client, open_client
from syscalls.errno import SyscallError
from tests.kernel.harness import MODEL, running_kernel, wait_until


@attrs.define(eq=False)
class Job:
    """One request of the model."""

    pid: int
    tenant: str
    prompt: int
    output: int
    done: int = 0


class Device:
    """A serving engine in few lines: frames are tokens, a job holds what it may need, a step samples."""

    def __init__(self, policy: ResidencyPolicy, accounts: Accounts, num_frames: int) -> None:
        self.policy, self.accounts, self.num_frames = policy, accounts, num_frames
        self.waiting: list[Job] = []
        self.running: list[Job] = []

    def submit(self, job: Job) -> None:
        self.waiting.append(job)
        self.accounts.start_waiting(job.tenant)

    def candidates(self, jobs: list[Job]) -> Iterator[Candidate]:
        for job in jobs:
            order = self.policy.order(0, job.pid, 0.0, math.inf)
            yield Candidate(job.pid, job.tenant, order, False, job.prompt + job.output, 0, job.prompt, 0.0)

    def step(self) -> None:
        free = self.num_frames - sum(job.prompt + job.output for job in self.running)
        tenants = dict.fromkeys(job.tenant for job in self.waiting)
        queues = {
            name: list(self.candidates([j for j in self.waiting if j.tenant == name])) for name in tenants
        }
        view = View(
            self.candidates(self.waiting), lambda rank: (), queues, {}, lambda tenant: 0, (), free,
            len(self.running), 10**6,
        )  # fmt: skip
        by_pid = {job.pid: job for job in self.waiting}
        admitted = [by_pid[pid] for pid in self.policy.admit(view)]
        assert sum(job.prompt + job.output for job in admitted) <= free
        for job in admitted:
            self.waiting.remove(job)
            self.accounts.of(job.tenant).charge_prompt(job.prompt)
            self.accounts.stop_waiting(job.tenant)
            self.running.append(job)
        for job in self.running:
            job.done += 1
            self.accounts.of(job.tenant).charge_output(1)
        self.running = [job for job in self.running if job.done < job.output]

    def served(self, tenant: str) -> float:
        account = self.accounts.of(tenant)
        return PROMPT_WEIGHT * account.num_prompt_tokens + OUTPUT_WEIGHT * account.num_output_tokens


lengths = st.tuples(st.integers(4, 30), st.integers(4, 30))
tenants = st.sampled_from(["a", "b", "c"])


@settings(max_examples=150)
@given(
    weights=st.dictionaries(tenants, st.sampled_from([0.5, 1.0, 2.0, 4.0])),
    jobs=st.dictionaries(tenants, st.lists(lengths, min_size=1, max_size=8), min_size=2),
    num_frames=st.integers(60, 120),
)
def test_service_of_two_who_wait_differs_by_at_most_2_u(
    weights: dict[str, float], jobs: dict[str, list[tuple[int, int]]], num_frames: int
) -> None:
    """Over every interval in which both always have somebody waiting, in service divided by weight."""
    accounts = Accounts(weights)
    device = Device(TokenFair(accounts), accounts, num_frames)
    pids = itertools.count()
    supply = {tenant: itertools.cycle(lengths) for tenant, lengths in jobs.items()}

    def refill() -> None:
        for tenant, shapes in supply.items():
            while sum(job.tenant == tenant for job in device.waiting) < 16:  # more than fit at once
                device.submit(Job(next(pids), tenant, *next(shapes)))

    bounds = {
        tenant: max(
            PROMPT_WEIGHT * max(prompt for prompt, _ in shapes), OUTPUT_WEIGHT * num_frames
        ) / weights.get(tenant, 1.0)
        for tenant, shapes in jobs.items()
    }  # fmt: skip
    history: list[dict[str, float]] = []
    for _ in range(120):
        refill()
        history.append({tenant: device.served(tenant) / weights.get(tenant, 1.0) for tenant in jobs})
        device.step()
    for one, other in itertools.combinations(jobs, 2):
        gaps = [now[one] - now[other] for now in history]
        assert max(gaps) - min(gaps) <= 2 * max(bounds[one], bounds[other])


@settings(max_examples=100)
@given(shapes=st.lists(lengths, min_size=1, max_size=20), num_frames=st.integers(60, 120))
def test_one_tenant_is_served_in_order_of_arrival(shapes: list[tuple[int, int]], num_frames: int) -> None:
    """Alone, fair and first come first served decide the same, step by step."""
    accounts = Accounts()
    devices = [
        Device(policy, accounts, num_frames) for policy in (TokenFair(accounts), FirstComeFirstServed())
    ]
    for device in devices:
        for pid, shape in enumerate(shapes):
            device.submit(Job(pid, "a", *shape))
    for _ in range(60):
        for device in devices:
            device.step()
        assert [job.pid for job in devices[0].running] == [job.pid for job in devices[1].running]


@settings(max_examples=100)
@given(
    events=st.lists(st.tuples(st.sampled_from(["start", "stop", "prompt", "output"]), tenants), max_size=60),
    factor=st.sampled_from([0.25, 4.0]),
)
def test_counters_never_fall_and_a_lift_goes_no_further_than_the_waiting(
    events: list[tuple[str, str]], factor: float
) -> None:
    """A lift raises to the least of those that wait, and scaling all weights scales all counters."""
    accounts = Accounts(dict.fromkeys("abc", 1.0))
    scaled = Accounts(dict.fromkeys("abc", factor))
    for event, tenant in events:
        before = {name: accounts.of(name).counter for name in "abc"}
        waiting = [accounts.of(name) for name in "abc" if accounts.of(name).num_waiting]
        for book in (accounts, scaled):
            account = book.of(tenant)
            if event == "start":
                book.start_waiting(tenant)
            elif event == "stop" and account.num_waiting:
                book.stop_waiting(tenant)
            elif event == "prompt":
                account.charge_prompt(5)
            elif event == "output":
                account.charge_output(1)
            assert book.of(tenant).counter >= 0
        after = {name: accounts.of(name).counter for name in "abc"}
        assert all(after[name] >= before[name] for name in "abc")
        if event == "start" and after[tenant] > before[tenant] and waiting:
            assert after[tenant] == min(account.counter for account in waiting)
        assert {name: scaled.of(name).counter * factor for name in "abc"} == pytest.approx(after)


def test_a_newcomer_does_not_wait_for_a_flood() -> None:
    """A tenant with a hundred jobs in the queue, and one whose only job comes last: it is admitted first."""
    accounts = Accounts()
    device = Device(TokenFair(accounts), accounts, 100)
    for pid in range(100):
        device.submit(Job(pid, "flood", 10, 10))
    for _ in range(5):
        device.step()
    device.submit(Job(1000, "light", 10, 10))
    for _ in range(8):
        device.step()
    assert any(job.tenant == "light" for job in device.running)


def test_idleness_earns_no_credit() -> None:
    """One that comes back after a long time shares with the other from then on, instead of taking all."""
    accounts = Accounts()
    device = Device(TokenFair(accounts), accounts, 40)
    pids = itertools.count()
    for _ in range(300):
        while len(device.waiting) < 4:
            device.submit(Job(next(pids), "busy", 10, 10))
        device.step()
    before = {tenant: device.served(tenant) for tenant in ("busy", "back")}
    for _ in range(300):
        for tenant in ("busy", "back"):
            while sum(job.tenant == tenant for job in device.waiting) < 4:
                device.submit(Job(next(pids), tenant, 10, 10))
        device.step()
    gained = {tenant: device.served(tenant) - before[tenant] for tenant in before}
    assert abs(gained["busy"] - gained["back"]) <= 2 * OUTPUT_WEIGHT * 40


@pytest.mark.parametrize(("before", "after"), [(1e-3, 1.0), (1.0, 1e3), (1e-3, 1e3), (1e3, 1e3)])
def test_a_new_weight_holds_at_once(before: float, after: float) -> None:
    """A tenant that weighs more from now on is not kept waiting for what it was charged by the old weight."""
    accounts = Accounts({"a": before, "b": 1.0})
    device = Device(TokenFair(accounts), accounts, 100)
    pids = itertools.count()

    def run(num_steps: int) -> dict[str, float]:
        start = {tenant: device.served(tenant) for tenant in "ab"}
        for _ in range(num_steps):
            for tenant in "ab":
                while sum(job.tenant == tenant for job in device.waiting) < 8:
                    device.submit(Job(next(pids), tenant, 10, 10))
            device.step()
        return {tenant: device.served(tenant) - start[tenant] for tenant in "ab"}

    run(300)
    accounts.set_weights({"a": after, "b": 1.0})
    gained = run(300)
    assert abs(gained["a"] / after - gained["b"]) <= 2 * OUTPUT_WEIGHT * 100 / min(after, 1.0)


@given(
    first=st.tuples(st.integers(-20, 19), st.floats(0, 1e5)),
    second=st.tuples(st.integers(-20, 19), st.floats(0, 1e5)),
)
def test_waiting_makes_up_for_nice(first: tuple[int, float], second: tuple[int, float]) -> None:
    """Whoever has waited longer by two seconds a level goes first, so nobody starves."""
    policy = TokenFair(Accounts())
    goes_first = policy.order(first[0], 1, first[1], math.inf) < policy.order(
        second[0], 2, second[1], math.inf
    )
    advantage = (second[1] - first[1]) / SECONDS_PER_LEVEL + second[0] - first[0]
    if abs(advantage) > 1e-6:
        assert goes_first == (advantage > 0)


@given(
    levels=st.tuples(*2 * [st.tuples(st.integers(-20, 19), st.integers(0, 50))]),
    deadlines=st.tuples(*2 * [st.sampled_from([5.0, 60.0, math.inf])]),
)
def test_deadlines_decide_between_equals(
    levels: tuple[tuple[int, int], tuple[int, int]], deadlines: tuple[float, float]
) -> None:
    """Inside a level of nice and age the earlier deadline is first, no deadline last; levels come before."""
    policy = TokenFair(Accounts())
    orders = [
        policy.order(nice, pid, pid + halves / 2, deadline)
        for pid, ((nice, halves), deadline) in enumerate(zip(levels, deadlines, strict=True))
    ]
    floors = [
        math.floor(nice + (pid + halves / 2) / SECONDS_PER_LEVEL) for pid, (nice, halves) in enumerate(levels)
    ]
    if floors[0] != floors[1]:
        assert (orders[0] < orders[1]) == (floors[0] < floors[1])
    elif deadlines[0] != deadlines[1]:
        assert (orders[0] < orders[1]) == (deadlines[0] < deadlines[1])


# --- on a whole kernel -----------------------------------------------------------------------------------


async def test_a_light_tenant_is_served_beside_a_flood(autojump_clock, tmp_path, monkeypatch) -> None:
    """Two users; one spawns sixty processes, then the other one: it runs next."""
    uids = iter([1000, 2000, 3000])
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    async with running_kernel(tmp_path, max_running=4, policy="fair") as kernel:
        async with open_client(kernel.socket_path) as flood, open_client(kernel.socket_path) as light:
            floods = [(await flood.spawn(range(1, 30), max_tokens=40)).pids[0] for _ in range(60)]
            await flood.read(floods[0])
            (pid,) = (await light.spawn(range(100, 140), max_tokens=40)).pids
            await light.wait(pid)
            running = [(await flood.stat(each)).state for each in floods]
            assert running.count("READY") > 40
            for each in floods:
                await flood.wait(each)
        accounts = kernel.system.accounts
        assert accounts.of("uid:3000").num_prompt_tokens == 40
        assert accounts.of("uid:3000").num_output_tokens == 40
        assert accounts.of("uid:2000").num_output_tokens == 60 * 40


async def test_the_earlier_deadline_is_served_first(autojump_clock, tmp_path) -> None:
    """One place: whoever wants to be done sooner goes first, then who does not mind; nonsense is named."""
    async with running_kernel(tmp_path, max_running=1) as kernel:
        client = kernel.client
        deadlines = [None, None, 30.0, 5.0, 20.0]
        pids = [
            (await client.spawn((1, 2, 3), max_tokens=20, deadline_seconds=deadline)).pids[0]
            for deadline in deadlines
        ]
        table = kernel.system.table
        await wait_until(lambda: all(table.get(pid).ended_at for pid in pids))
        ended = sorted(pids[1:], key=lambda pid: table.get(pid).ended_at)
        assert ended == [pids[3], pids[4], pids[2], pids[1]]  # pids[0] ran before the others came
        assert table.get(pids[3]).deadline_at == table.get(pids[3]).spawned_at + 5.0
        (child,) = (await client.spawn((1,), max_tokens=5, interactive=True, deadline_seconds=9.0)).pids
        (fork,) = (await client.fork(child)).pids
        assert table.get(fork).deadline_seconds == 9.0
        for pid in (*pids, child, fork):
            await client.kill(pid)
            await client.wait(pid)
        for nonsense in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(SyscallError, match="deadline_seconds"):
                await client.spawn((1,), deadline_seconds=nonsense)


async def test_a_flood_of_long_processes_gives_way(autojump_clock, tmp_path, monkeypatch) -> None:
    """Processes of thousands of tokens have all places; another user's need not wait for their end."""
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    waits = {}
    for quantum in (100.0, 1e9):
        uids = iter([1000, 2000, 3000])
        async with (
            running_kernel(tmp_path, max_running=4, fair_quantum=quantum) as kernel,
            open_client(kernel.socket_path) as flood,
            open_client(kernel.socket_path) as light,
        ):
            pids = [(await flood.spawn((1, 2, i), max_tokens=2000)).pids[0] for i in range(4)]
            await trio.sleep(5)
            (pid,) = (await light.spawn(range(100, 140), max_tokens=10)).pids
            waited = await light.wait(pid)
            waits[quantum] = waited.usage.queued_seconds
            outputs = [await flood.wait(each) for each in pids]
            assert sum(each.usage.num_preemptions for each in outputs) == (quantum < 1e9)
            assert all(each.usage.num_output_tokens == 2000 for each in outputs)
    assert waits[100.0] < 1.0 < 10.0 < waits[1e9]


async def test_who_gives_its_place_keeps_its_memory(autojump_clock, tmp_path, monkeypatch) -> None:
    """Where there is memory for all, a place changes hands without a copy, and nothing is computed twice."""
    uids = iter([1000, 2000, 3000])
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    async with (
        running_kernel(tmp_path, max_running=2, swap_mib=1, prefix_cache=False) as kernel,
        open_client(kernel.socket_path) as flood,
        open_client(kernel.socket_path) as light,
    ):
        (core,) = kernel.system.cores.values()
        pids = [(await flood.spawn((1, 2, i), max_tokens=1000)).pids[0] for i in range(2)]
        await trio.sleep(3)
        for i in range(6):
            (pid,) = (await light.spawn((7, 8, i), max_tokens=20)).pids
            assert (await read_all(light, pid)) == MODEL.expected_tokens((7, 8, i), 20)
        whys = [await flood.why(pid) for pid in pids]
        told = [entry for why in whys for entry in why.entries if entry.kind == "preempted"]
        assert {entry.text for entry in told} == {"set aside, fair share of uid:3000"}
        for i, pid in enumerate(pids):
            assert (await read_all(flood, pid)) == MODEL.expected_tokens((1, 2, i), 1000)
        statistics = core.statistics()
        assert statistics.num_preemptions == len(told) >= 3
        assert statistics.num_prompt_tokens == 8 * 3
        assert all(not tier.num_bytes_out for tier in statistics.swap.tiers.values())


async def test_a_place_counts_while_memory_is_on_its_way(autojump_clock, tmp_path, monkeypatch) -> None:
    """Six chats come back from a tier that takes two seconds: they get half of the places, and not all.

    Those that run meanwhile go on: with none of theirs counted the chats would have stopped all of them.
    """
    uids = iter([1000, 2000, 3000])
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    slow = partial(SimDriver, host_cost=CopyCost(base=2.0, bytes_per_second=1e9))
    options = {"swap_mib": 8, "swap_idle_seconds": 1.0, "prefix_cache": False, "preempt": "swap"}
    async with (
        running_kernel(tmp_path, slow, max_running=6, **options) as kernel,
        open_client(kernel.socket_path) as busy,
        open_client(kernel.socket_path) as back,
    ):
        (core,) = kernel.system.cores.values()
        spawned = [await back.spawn(range(1, 60), max_tokens=2, interactive=True) for _ in range(6)]
        chats = [each.pids[0] for each in spawned]
        members = core.residents.queue.members
        await wait_until(lambda: all(each.turn_is_over and not each.space for each in members.values()))
        await wait_until(lambda: not core.statistics().swap.num_in_flight)
        pids = [(await busy.spawn((1, 2, i), max_tokens=3000)).pids[0] for i in range(6)]
        await trio.sleep(5)
        for pid in chats:
            await back.write(pid, (5, 6, 7), 400)
        await wait_until(lambda: len(core.residents.queue.arriving) == 3)
        await trio.sleep(1)
        assert sum(members[pid].num_preemptions for pid in pids) == 3
        assert len(core.residents.queue.running) == 3
        for client, pid in (*((busy, pid) for pid in pids), *((back, pid) for pid in chats)):
            await client.kill(pid)
            await client.wait(pid)


async def test_memory_of_who_was_set_aside_is_the_first_to_go(autojump_clock, tmp_path, monkeypatch) -> None:
    """It is kept while nobody wants it: those who grow take it, and the tokens stay what they are."""
    uids = iter([1000, 2000, 3000])
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    async with (
        running_kernel(tmp_path, partial(SimDriver, num_frames=160), max_running=4, swap_mib=1) as kernel,
        open_client(kernel.socket_path) as flood,
        open_client(kernel.socket_path) as light,
    ):
        (core,) = kernel.system.cores.values()
        room = core.loaded.kv.capacity(160)
        pids = [(await flood.spawn((1, 2, i), max_tokens=room // 3)).pids[0] for i in range(12)]
        await trio.sleep(1)
        lights = [(await light.spawn((7, 8, i), max_tokens=room // 8)).pids[0] for i in range(6)]
        for i, pid in enumerate(lights):
            assert (await read_all(light, pid)) == MODEL.expected_tokens((7, 8, i), room // 8)
        kinds = set()
        for i, pid in enumerate(pids):
            assert (await read_all(flood, pid)) == MODEL.expected_tokens((1, 2, i), room // 3)
            why = await flood.why(pid)
            kinds |= {entry.text.partition(",")[0] for entry in why.entries if entry.kind == "preempted"}
        assert "set aside" in kinds
        assert kinds & {"swap", "recompute"}


async def read_all(client: Client, pid: int) -> tuple[int, ...]:
    """All tokens of a process."""
    return tuple([token async for output in client.stream(pid) for token in output.tokens])


async def test_priorities_drawn_at_random_change_no_token(autojump_clock, tmp_path) -> None:
    """Under `rerank` everybody is preempted again and again, and emits what a quiet run emits."""
    async with running_kernel(tmp_path, max_running=3, policy="rerank", rerank_steps=5) as kernel:
        prompts = [tuple((i * j) % 97 for j in range(1, 50)) for i in range(1, 9)]
        pids = [(await kernel.client.spawn(prompt, max_tokens=60)).pids[0] for prompt in prompts]
        for pid, prompt in zip(pids, prompts, strict=True):
            tokens = [token async for output in kernel.client.stream(pid) for token in output.tokens]
            assert tuple(tokens) == MODEL.expected_tokens(prompt, 60)
            await kernel.client.wait(pid)
        (core,) = kernel.system.cores.values()
        assert core.statistics().num_preemptions > 20


async def test_service_is_charged_once(autojump_clock, tmp_path) -> None:
    """What is computed again, found in the prefix cache or shared by fork costs nothing more."""
    async with running_kernel(tmp_path, max_running=8) as kernel:
        account = kernel.system.accounts.of(f"uid:{os.getuid()}")
        prompts = [tuple((i * j) % 97 for j in range(1, 120)) for i in range(1, 30)]
        pids = [(await kernel.client.spawn(prompt, max_tokens=60)).pids[0] for prompt in prompts]
        for pid in pids:
            await kernel.client.wait(pid)
        assert account.num_output_tokens == 29 * 60
        num_first = account.num_prompt_tokens
        assert num_first <= sum(map(len, prompts))
        siblings = (await kernel.client.spawn(range(200, 300), max_tokens=5, num_samples=8)).pids
        for pid in siblings:
            await kernel.client.wait(pid)
        assert account.num_prompt_tokens - num_first <= 100 + 7
        assert account.num_output_tokens == 29 * 60 + 8 * 5
        assert account.token_seconds > 0


async def test_nobody_keeps_memory_that_the_next_one_waits_for(autojump_clock, tmp_path, monkeypatch) -> None:
    """A chat that holds memory has input, and a tenant that is next asks for more than is free: both end."""
    uids = iter([1000, 3000, 2000])  # of equals, 2000 is next
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    async with running_kernel(
        tmp_path, make_sim=partial(SimDriver, num_frames=8), prefix_cache=False, max_running=4
    ) as kernel:
        (core,) = kernel.system.cores.values()
        half = core.loaded.kv.tokens_per_page * 2
        async with open_client(kernel.socket_path) as rich, open_client(kernel.socket_path) as poor:
            (chat,) = (await rich.spawn(range(1, half), max_tokens=9, interactive=True)).pids
            await wait_until(lambda: kernel.system.table.get(chat).state is ProcState.BLOCKED)
            process = kernel.system.table.get(chat)
            commands.write_input(core.residents, process, (5,), 9, 10**6)  # READY, and holds its pages
            with trio.fail_after(60):
                (pid,) = (await poor.spawn(range(1, half + 1), max_tokens=half - 2)).pids
                await poor.wait(pid)
            await rich.kill(chat)
            await rich.wait(chat)


def test_who_is_held_back_by_a_cap_of_its_own_is_idle() -> None:
    """It lifts nobody meanwhile, earns no credit, and is lifted when it has room again."""
    accounts = Accounts()
    capped, busy = accounts.of("capped"), accounts.of("busy")
    accounts.start_waiting("capped")
    accounts.set_held_back(capped, True)
    accounts.start_waiting("busy")
    busy.charge_prompt(1000)
    accounts.start_waiting("back")
    assert accounts.of("back").counter == 1000  # not the 0 of the one that is held back
    assert capped.counter == 0
    accounts.set_held_back(capped, False)
    assert capped.counter == 1000
    accounts.set_held_back(capped, False)
    busy.charge_prompt(1000)
    assert capped.counter == 1000
