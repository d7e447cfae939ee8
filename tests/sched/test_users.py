"""Whose turn it is among a tenant's users: against a model in a few lines, and on a whole kernel."""

from __future__ import annotations

import itertools
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from llmos.sched import users
from llmos.sched.turns import Turns
from llmos.sched.users import Users
from syscalls.errno import SyscallError
from tests.kernel.harness import running_kernel


@attrs.define(eq=False)
class Job:
    """What a process is to Users."""

    tenant: str
    user: str
    num_uncharged: int
    service: float = 0.0
    order: tuple[float, ...] = (0,)


def make_users() -> Users:
    """That ask a job what it was served."""
    return Users(lambda job: job.service)


NAMES = st.sampled_from(["", "ann", "bob", "cid"])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), NAMES, st.integers(0, 9), st.integers(0, 5)),
        st.tuples(st.sampled_from(["run", "wait", "go"]), st.integers(0, 99)),
        st.tuples(st.just("serve"), st.integers(0, 99), st.integers(0, 50)),
    ),
    max_size=40,
)


def expected_turns(accounts: Users, waiting: list[Job]) -> list[Job]:
    """Each user's own in their order; always next is whoever has least, counting what it has just got."""
    left = sorted(waiting, key=lambda job: job.order)
    totals = {job.user: accounts.served("alice", job.user) for job in left}
    places = {user: place for place, user in enumerate(dict.fromkeys(job.user for job in left))}
    expected = []
    while left:
        user = min({job.user for job in left}, key=lambda name: (totals[name], places[name]))
        job = next(each for each in left if each.user == user)
        left.remove(job)
        expected.append(job)
        totals[user] += max(1, job.num_uncharged)
    return expected


@given(EVENTS)
def test_turns_are_those_of_the_least_served(events: list[tuple]) -> None:
    """Jobs come, wait, run, are served while they run or just after, and go: the lines are a model's."""
    accounts = make_users()
    turns = Turns("alice", accounts, lambda job: job.order)
    waiting: list[Job] = []
    running: list[Job] = []
    for number, (kind, *details) in enumerate(events):
        if kind == "come":
            user, num_uncharged, level = details
            job = Job("alice", user, num_uncharged, order=(level, number))
            accounts.enter(job)
            waiting.append(job)
            turns.add(job)
        elif kind == "serve" and running:
            place, amount = details
            running[place % len(running)].service += amount
        elif kind == "run" and waiting:
            job = waiting.pop(details[0] % len(waiting))
            turns.remove(job)
            accounts.settle(job, is_running=True)
            running.append(job)
        elif kind == "wait" and running:
            job = running.pop(details[0] % len(running))
            accounts.settle(job, is_running=False)
            waiting.append(job)
            turns.add(job)
        elif kind == "go" and running:
            accounts.leave(running.pop(details[0] % len(running)))
        assert list(turns) == expected_turns(accounts, waiting)
        assert bool(turns) == bool(waiting)


def test_a_look_costs_what_it_takes() -> None:
    """The next few of thousands of users: only theirs and those of who runs are asked for what they had."""
    asked: list[Job] = []

    def service(job: Job) -> float:
        asked.append(job)
        return job.service

    accounts = Users(service)
    turns = Turns("alice", accounts, lambda job: job.order)
    for number in range(3000):
        accounts.enter(job := Job("alice", f"user-{number}", 5, order=(number,)))
        turns.add(job)
    served = [Job("alice", f"user-{number}", 0) for number in range(20)]
    for job in served:
        accounts.enter(job)
        accounts.settle(job, is_running=True)
        job.service = 100.0
    asked.clear()
    assert [job.user for job in itertools.islice(turns, 3)] == ["user-20", "user-21", "user-22"]
    assert asked == served


@given(st.lists(st.tuples(NAMES, st.integers(0, 9)), max_size=30), st.data())
def test_nothing_is_kept_of_those_that_are_gone_but_what_they_were_served(
    entries: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Jobs come, are served and go in any order; who comes back is at least where the others are."""
    accounts, living = make_users(), []
    for name, amount in entries:
        others = {job.user for job in living} - {name}
        was_there = any(job.user == name for job in living)
        least = min((accounts.served("alice", user) for user in others), default=0.0)
        accounts.enter(job := Job("alice", name, 0, service=5.0))  # as a fork of one that was served
        if not was_there:
            assert accounts.served("alice", name) >= least
        before = accounts.served("alice", name)
        if is_running := data.draw(st.booleans()):
            accounts.settle(job, is_running=True)
        job.service += amount
        assert accounts.served("alice", name) == before + amount * is_running
        accounts.settle(job, is_running=False)
        assert accounts.served("alice", name) == accounts.settled("alice", name) == before + amount
        living.append(job)
        if data.draw(st.booleans()):
            gone = living.pop(data.draw(st.integers(0, len(living) - 1)))
            before = accounts.served("alice", gone.user)
            accounts.leave(gone)
            assert accounts.served("alice", gone.user) == before
    for job in living:
        accounts.leave(job)
    assert accounts._present == {}


def test_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users that are gone for longest are forgotten first."""
    monkeypatch.setattr(users, "MAX_REMEMBERED", 3)
    accounts = make_users()
    for number in range(10):
        accounts.enter(job := Job("alice", f"user-{number}", 0))
        job.service = 7.0
        accounts.leave(job)
    assert [accounts.served("alice", f"user-{number}") for number in range(10)] == [0.0] * 7 + [7.0] * 3
    accounts.enter(present := Job("alice", "user-7", 0))  # who is there is not among them
    for number in range(10, 14):
        accounts.enter(job := Job("bob", f"user-{number}", 0))
        accounts.leave(job)
    assert accounts.served("alice", "user-7") == 7.0
    accounts.leave(present)


@pytest.mark.parametrize("is_named", [True, False])
async def test_a_flood_of_one_user_does_not_keep_another_waiting(
    tmp_path: Path, autojump_clock: trio.abc.Clock, is_named: bool
) -> None:
    """Two places, forty requests of one and three of another of the same tenant, who comes last."""
    async with running_kernel(tmp_path, max_running=2) as kernel:
        client = kernel.client
        flood = [
            (await client.spawn([1, 2, number], max_tokens=20, user="ann" if is_named else "")).pids[0]
            for number in range(40)
        ]
        await trio.sleep(1.0)
        others = [
            (await client.spawn([3, 4, number], max_tokens=20, user="bob" if is_named else "")).pids[0]
            for number in range(3)
        ]
        for pid in others:
            await client.wait(pid)
        num_left = sum(kernel.system.table.get(pid).ended_at is None for pid in flood)
        assert (num_left > 25) == is_named
        assert (await client.stat(flood[-1])).user == ("ann" if is_named else "")
        for pid in flood:
            await client.wait(pid)


async def test_a_child_is_its_parents_users(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A fork names whom its parent named; a name has at most 256 characters."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (parent,) = (await client.spawn([1, 2], max_tokens=3, interactive=True, user="ann")).pids
        (child,) = (await client.fork(parent)).pids
        assert (await client.stat(child)).user == "ann"
        for call in (client.spawn([1, 2], user="x" * 257), client.embed([(1, 2)], user="x" * 257)):
            with pytest.raises(SyscallError, match="user has 257 characters; the limit is 256") as caught:
                await call
            assert caught.value.parameter == "user"
        for pid in (parent, child):
            await client.kill(pid)
            await client.wait(pid)
