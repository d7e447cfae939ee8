"""The tenants file, read again while everything runs: what holds from then on, and for whom it ends."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from drivers.sim import SimDriver
from llmos.sched.accounts import Account
from syscalls.client import Client, ConnectionLost, open_client
from syscalls.errno import Errno, SyscallError
from tests.kernel.harness import RunningKernel, running_kernel, wait_until
from tests.kernel.test_tenants import (
    BIG_PAGES,
    KEYS,
    finish,
    num_places,
    refused,
    resident_bytes,
    two_tenants,
    write_tenants,
)

NEVER = 2**62  # an event that does not come
CAROL = "sk-llmos-carol"


def table(name: str, key: str, lines: str = "") -> str:
    """A tenant's table."""
    return f'[tenant.{name}]\nkeys_sha256 = ["{hashlib.sha256(key.encode()).hexdigest()}"]\n{lines}\n'


async def test_new_tenants_weights_and_limits_hold_at_once(autojump_clock, tmp_path: Path) -> None:
    """Sessions and processes of those that stay are not touched; answer and events name the changes."""
    async with two_tenants(tmp_path, alice="max_waiting = 1", bob="weight = 2") as pair:
        (pid,) = (await pair.alice.spawn([1, 2], max_tokens=300)).pids
        write_tenants(
            tmp_path, alice="max_waiting = 1", bob="weight = 4\nmin_nice = 3", more=table("carol", CAROL)
        )
        done = await pair.kernel.client.reload_tenants()
        assert (done.added, done.changed, done.removed) == (("carol",), ("bob",), ())
        assert done.num_ended_sessions == 0
        found = {tenant.name: tenant for tenant in await pair.kernel.client.tenants(everyone=True)}
        assert (found["bob"].usage.weight, found["bob"].limits.min_nice) == (4.0, 3)
        with pytest.raises(SyscallError, match="tenant bob may have 3 and above"):
            await pair.bob.spawn([1, 2], max_tokens=1)
        async with open_client(pair.kernel.socket_path, key=CAROL) as carol:
            assert (await carol.whoami()).tenant == "carol"
            await finish(carol, *(await carol.spawn([1, 2], max_tokens=5)).pids)
        await finish(pair.alice, pid)
        text = pair.kernel.system.events.since(0, 100)[-1].text
        assert text == "tenants read again: added carol; changed bob; 0 sessions ended"
        again = await pair.kernel.client.reload_tenants()
        assert (again.added, again.changed, again.removed) == ((), (), ())


async def test_a_removed_tenant_loses_its_sessions_and_what_lives_with_them(
    autojump_clock, tmp_path: Path
) -> None:
    """Its detached processes go on to their end, and under the default limits; its key opens nothing."""
    async with two_tenants(tmp_path, alice="max_running = 1\nweight = 8") as pair:
        (attached,) = (await pair.alice.spawn([1, 2], max_tokens=2000)).pids
        (detached,) = (await pair.alice.spawn([1, 2], max_tokens=40, detached=True)).pids
        write_tenants(tmp_path, more="[default]\nmax_waiting = 5\n")
        path = tmp_path / "tenants.toml"
        path.write_text(path.read_text().partition("[tenant.alice]")[0] + table("bob", KEYS["bob"]))
        done = await pair.kernel.client.reload_tenants()
        assert (done.removed, done.num_ended_sessions) == (("alice",), 1)
        with pytest.raises(ConnectionLost, match="no tenant has this key"):
            await pair.alice.events(NEVER, follow=True)
        await wait_until(lambda: attached not in [p.pid for p in pair.kernel.system.table])
        output = await pair.kernel.client.wait(detached)
        assert (output.status.reason, output.usage.num_output_tokens) == ("length", 40)
        with pytest.raises(SyscallError, match="no tenant has this key"):
            async with open_client(pair.kernel.socket_path, key=KEYS["alice"]):
                raise AssertionError
        tenant = pair.kernel.system.tenants.of("alice")
        assert (tenant.limits.max_running, tenant.limits.max_waiting) == (None, 5)
        assert (tenant.account.weight, tenant.account.max_running) == (1.0, None)
        await finish(pair.bob, *(await pair.bob.spawn([1, 2], max_tokens=5)).pids)


async def test_a_key_that_was_replaced_opens_nothing_and_keeps_nothing_open(
    autojump_clock, tmp_path: Path
) -> None:
    """The tenant is the same, and reached by its new key only; a right that was taken is gone at once."""
    async with two_tenants(tmp_path, bob="admin = true") as pair:
        assert len(await pair.bob.tenants(everyone=True)) >= 2
        path = tmp_path / "tenants.toml"
        path.write_text(table("alice", CAROL) + table("bob", KEYS["bob"]))
        done = await pair.bob.reload_tenants()
        assert (done.changed, done.num_ended_sessions) == (("alice", "bob"), 1)
        with pytest.raises(ConnectionLost, match="no tenant has this key"):
            await pair.alice.events(NEVER, follow=True)
        async with open_client(pair.kernel.socket_path, key=CAROL) as alice:
            assert alice.welcome.tenant == "alice"
        for call in (pair.bob.tenants(everyone=True), pair.bob.reload_tenants()):
            with pytest.raises(SyscallError, match="EPERM"):
                await call


async def test_a_file_that_is_wrong_changes_nothing(autojump_clock, tmp_path: Path) -> None:
    """It is refused by what is wrong in it, as it would be at the start; so is what takes a restart."""
    async with two_tenants(tmp_path, alice="max_waiting = 3") as pair:
        path = tmp_path / "tenants.toml"
        before = await pair.kernel.client.tenants(everyone=True)
        for text, message in (
            ("[tenant", "is not TOML"),
            ("[tenant.alice]\nmax_runing = 2", "unknown field `max_runing`"),
            (table("alice", CAROL) + table("carol", CAROL), "is there twice, first in tenant.alice"),
            (table("alice", CAROL) + "token_budget = 5\n", "the first token_budget"),
            ("[tenant.alice]\nmax_waiting = 9", "no key any more, and doors ask for keys"),
        ):
            path.write_text(text)
            with pytest.raises(SyscallError, match="the tenants stay as they were: ") as caught:
                await pair.kernel.client.reload_tenants()
            assert caught.value.errno is Errno.EINVAL
            assert message in caught.value.message
            event = pair.kernel.system.events.since(0, 100)[-1]
            assert (event.level, event.text) == ("error", caught.value.message)
        path.unlink()
        with pytest.raises(SyscallError, match=r"cannot read .*tenants\.toml"):
            await pair.kernel.client.reload_tenants()
        assert await pair.kernel.client.tenants(everyone=True) == before
        assert (await pair.alice.whoami()).tenant == "alice"
        with pytest.raises(SyscallError, match="EPERM"):
            await pair.alice.reload_tenants()


async def test_a_first_key_takes_a_restart(autojump_clock, tmp_path: Path) -> None:
    """A gateway that let everybody in would go on to; a kernel without a file has none to read."""
    path = tmp_path / "tenants.toml"
    path.write_text("[default]\nmax_waiting = 5\n")
    async with running_kernel(tmp_path, tenants=str(path)) as kernel:
        path.write_text(table("alice", CAROL))
        with pytest.raises(SyscallError, match="the first key, and doors ask for keys from their start on"):
            await kernel.client.reload_tenants()
        path.write_text("[default]\nmax_waiting = 7\n[tenant.batch]\nuids = [4001]\n")
        assert (await kernel.client.reload_tenants()).added == ("batch",)
        assert os.stat(kernel.socket_path).st_mode & 0o777 == 0o666
    async with running_kernel(tmp_path) as kernel:
        with pytest.raises(SyscallError, match="without a tenants file"):
            await kernel.client.reload_tenants()


async def test_who_waited_for_a_cap_runs_when_it_is_raised(autojump_clock, tmp_path: Path) -> None:
    """At once; when it is lowered, those that run go on and nobody takes the places that they leave."""
    async with two_tenants(tmp_path, alice="max_running = 1", max_running=5) as pair:
        tenant = pair.kernel.system.tenants.of("alice")
        pids = [(await pair.alice.spawn([1, 2], max_tokens=400)).pids[0] for _ in range(4)]
        await wait_until(lambda: num_places(tenant) == 1)
        write_tenants(tmp_path, alice="max_running = 3")
        await pair.kernel.client.reload_tenants()
        await wait_until(lambda: num_places(tenant) == 3)
        write_tenants(tmp_path, alice="max_running = 1")
        await pair.kernel.client.reload_tenants()
        assert num_places(tenant) == 3
        await pair.alice.kill(pids[0])
        await pair.alice.kill(pids[1])
        await wait_until(lambda: len(tenant.processes) == 2)
        await wait_until(lambda: num_places(tenant) == 1)
        write_tenants(tmp_path)
        await pair.kernel.client.reload_tenants()
        assert not pair.kernel.system.accounts.has_caps
        await wait_until(lambda: num_places(tenant) == 2)
        await finish(pair.alice, *pids)


async def test_what_was_taken_of_a_rate_stays_taken(autojump_clock, tmp_path: Path) -> None:
    """Neither reading the file again nor a higher rate gives a fresh minute."""
    async with two_tenants(tmp_path, alice="requests_per_minute = 2") as pair:
        for _ in range(2):
            await finish(pair.alice, *(await pair.alice.spawn([1, 2], max_tokens=1)).pids)
        await refused(pair.alice.spawn([1, 2], max_tokens=1))
        await pair.kernel.client.reload_tenants()
        await refused(pair.alice.spawn([1, 2], max_tokens=1))
        write_tenants(tmp_path, alice="requests_per_minute = 3")
        await pair.kernel.client.reload_tenants()
        await finish(pair.alice, *(await pair.alice.spawn([1, 2], max_tokens=1)).pids)
        error = await refused(pair.alice.spawn([1, 2], max_tokens=1))
        assert error.exceeded.value == 3


AGREEMENTS = st.fixed_dictionaries(
    {
        "weight": st.sampled_from([1e-3, 0.5, 1.0, 1e3]),
        "max_running": st.none() | st.integers(1, 4),
        "max_resident_mib": st.none() | st.integers(1, 3),
    }
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("spawn"), st.booleans(), st.integers(1, 120), st.integers(1, 90)),
        st.tuples(st.just("chat"), st.booleans(), st.integers(1, 120), st.integers(1, 20)),
        st.tuples(st.just("nice"), st.integers(0, 30), st.integers(-20, 19)),
        st.tuples(st.sampled_from(["stop", "cont", "kill", "fork"]), st.integers(0, 30)),
        st.tuples(st.just("agree"), AGREEMENTS, AGREEMENTS),
        st.tuples(st.just("pause"), st.floats(0.001, 0.3)),
    ),
    min_size=5,
    max_size=30,
)


def lines_of(agreement: dict[str, float | None]) -> str:
    """Lines of a tenant's table."""
    return "\n".join(f"{name} = {value}" for name, value in agreement.items() if value is not None)


def is_within_its_cap(kernel: RunningKernel, account: Account) -> bool:
    """Does a tenant hold no more memory than it may?"""
    most = account.max_resident_bytes
    return most is None or resident_bytes(kernel, account.tenant) <= most


async def live(operations: list[tuple], num_frames: int, max_running: int, swap_mib: int) -> None:
    """Two tenants that are agreed with anew while their processes are anywhere, under limits they exceed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        make_sim = partial(SimDriver, kv=BIG_PAGES, num_frames=num_frames)
        async with two_tenants(path, make_sim=make_sim, max_running=max_running, swap_mib=swap_mib) as pair:
            pids: list[tuple[Client, int]] = []
            for name, *arguments in operations:
                if name == "pause":
                    await trio.sleep(arguments[0])
                elif name == "agree":
                    alice, bob = map(lines_of, arguments)
                    write_tenants(path, alice=alice, bob=bob)
                    await pair.kernel.client.reload_tenants()
                elif name in ("spawn", "chat"):
                    is_alice, length, max_tokens = arguments
                    client = pair.alice if is_alice else pair.bob
                    with suppress(SyscallError):  # more than its tenant may have by now
                        spawned = await client.spawn(
                            [length] * length, max_tokens=max_tokens, interactive=name == "chat"
                        )
                        pids += [(client, pid) for pid in spawned.pids]
                elif pids:
                    client, pid = pids[arguments[0] % len(pids)]
                    with suppress(SyscallError):  # it has exited
                        if name == "fork":
                            pids.append((client, (await client.fork(pid)).pids[0]))
                        else:
                            await getattr(client, name)(pid, *arguments[1:])
            with trio.fail_after(1000):
                for client, pid in pids:
                    if (await client.stat(pid)).state == "STOPPED":
                        await client.cont(pid)
                for client, pid in pids:
                    async for _ in client.stream(pid):
                        pass
            pair.kernel.check_integrity()
            (core,) = pair.kernel.system.cores.values()
            accounts = [pair.kernel.system.accounts.of(name) for name in KEYS]
            await wait_until(lambda: all(map(partial(is_within_its_cap, pair.kernel), accounts)))
            assert all(account.num_running == account.num_waiting == 0 for account in accounts)
            assert pair.kernel.system.accounts.mean_load == 0.0
            assert core.residents.queue.num_places_taken == 0
            for client, pid in pids:
                await client.kill(pid)
                await client.wait(pid)


@settings(max_examples=30)
@given(
    operations=OPERATIONS,
    num_frames=st.sampled_from([16, 24, 64]),
    max_running=st.integers(1, 5),
    swap_mib=st.sampled_from([0, 1, 16]),
)
def test_whatever_is_agreed_meanwhile_everybody_is_served(
    operations: list[tuple], num_frames: int, max_running: int, swap_mib: int
) -> None:
    """Weights, limits below what is used, nice levels of whoever runs, waits or is swapped out."""
    trio.run(live, operations, num_frames, max_running, swap_mib, clock=MockClock(autojump_threshold=0))
