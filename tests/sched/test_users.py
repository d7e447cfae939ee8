"""Whose turn it is among a tenant's users: against a model in a few lines, and on a whole kernel."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from llmos.sched import users
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


def make_users() -> Users:
    """That ask a job what it was served."""
    return Users(lambda job: job.service)


NAMES = st.sampled_from(["", "ann", "bob", "cid"])
JOBS = st.lists(st.tuples(NAMES, st.integers(0, 9), st.integers(0, 50)), max_size=20)


@given(queue=JOBS, served=st.dictionaries(NAMES, st.integers(0, 100)))
def test_turns_are_those_of_the_least_served(
    queue: list[tuple[str, int, int]], served: dict[str, int]
) -> None:
    """Each user's own in their order; always next is whoever has least, counting what it has just got."""
    accounts = make_users()
    for name, amount in served.items():
        accounts.enter(first := Job("alice", name, 0))
        first.service = amount
    jobs = [Job("alice", name, prompt) for name, prompt, _ in queue]
    for job in jobs:
        accounts.enter(job)
    for job, (_, _, service) in zip(jobs, queue, strict=True):
        job.service = service
    totals = {job.user: accounts.served("alice", job.user) for job in jobs}
    expected, left = [], list(jobs)
    places = {user: place for place, user in enumerate(dict.fromkeys(job.user for job in jobs))}
    while left:
        user = min({job.user for job in left}, key=lambda name: (totals[name], places[name]))
        job = next(each for each in left if each.user == user)
        left.remove(job)
        expected.append(job)
        totals[user] += max(1, job.num_uncharged)
    assert list(accounts.by_turns(jobs)) == expected


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
        job.service += amount
        assert accounts.served("alice", name) == before + amount
        living.append(job)
        if data.draw(st.booleans()):
            gone = living.pop(data.draw(st.integers(0, len(living) - 1)))
            before = accounts.served("alice", gone.user)
            accounts.leave(gone)
            assert accounts.served("alice", gone.user) == before
    for job in living:
        accounts.leave(job)
    assert (accounts.num_named, accounts._living) == (0, {})


def test_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users that are gone for longest are forgotten first."""
    monkeypatch.setattr(users, "MAX_REMEMBERED", 3)
    accounts = make_users()
    for number in range(10):
        accounts.enter(job := Job("alice", f"user-{number}", 0))
        job.service = 7.0
        accounts.leave(job)
    assert [accounts.served("alice", f"user-{number}") for number in range(10)] == [0.0] * 7 + [7.0] * 3


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
