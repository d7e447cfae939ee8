"""Tenants on a whole kernel: who they are, what they may do, what each limit refuses, and whom it touches."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from drivers.sim import DEFAULT_KV, SimDriver
from llmos.config import ConfigError
from llmos.cost import CostModel
from llmos.ipc.credentials import PeerCredentials
from llmos.kernel import server
from llmos.kernel.spent import SAVE_SECONDS, Spent
from llmos.kernel.tenants import Tenant
from llmos.sched.caps import has_place
from syscalls.client import Client, open_client
from syscalls.errno import Errno, SyscallError
from tests.kernel.harness import RunningKernel, run_in_place, running_kernel, wait_until

BIG_PAGES = msgspec.structs.replace(DEFAULT_KV, frame_bytes=64 << 10)  # a MiB has few of them
KEYS = {name: f"sk-llmos-{name}" for name in ("alice", "bob")}


def write_tenants(folder: Path, alice: str = "", bob: str = "", more: str = "") -> str:
    """A tenants file in which both have a key; the texts are more lines of their tables."""
    tables = [more]
    for name, lines in (("alice", alice), ("bob", bob)):
        digest = hashlib.sha256(KEYS[name].encode()).hexdigest()
        tables.append(f'[tenant.{name}]\nkeys_sha256 = ["{digest}"]\n{lines}')
    path = folder / "tenants.toml"
    path.write_text("\n".join(tables))
    return str(path)


@attrs.frozen
class Pair:
    """A kernel and a session for each of two tenants."""

    kernel: RunningKernel
    alice: Client
    bob: Client


@asynccontextmanager
async def two_tenants(
    tmp_path: Path,
    alice: str = "",
    bob: str = "",
    make_sim: partial[SimDriver] | None = None,
    **options: object,
) -> AsyncIterator[Pair]:
    """Run a kernel whose file gives the tenants these lines."""
    path = write_tenants(tmp_path, alice, bob)
    async with running_kernel(tmp_path, make_sim or SimDriver, tenants=path, **options) as kernel:
        async with (
            open_client(kernel.socket_path, key=KEYS["alice"]) as first,
            open_client(kernel.socket_path, key=KEYS["bob"]) as second,
        ):
            yield Pair(kernel, first, second)


async def test_a_key_is_an_administrators_if_the_file_says_so(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """One tenant sees everybody's processes and may drain; the other neither."""
    async with two_tenants(tmp_path, alice="admin = true") as pair:
        assert pair.alice.welcome.admin
        assert not pair.bob.welcome.admin
        spawned = await pair.bob.spawn([1, 2, 3], interactive=True, max_tokens=1)
        assert [process.pid for process in await pair.alice.ps(everyone=True)] == list(spawned.pids)
        for call in (pair.bob.ps(everyone=True), pair.bob.shutdown(0.0)):
            with pytest.raises(SyscallError, match="EPERM"):
                await call


async def refused(call: object) -> SyscallError:
    """Await a call that must be refused with EDQUOT."""
    with pytest.raises(SyscallError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.errno is Errno.EDQUOT
    assert caught.value.exceeded is not None
    assert caught.value.exceeded.limit in caught.value.message
    return caught.value


async def finish(client: Client, *pids: int) -> None:
    """Wait for processes."""
    for pid in pids:
        await client.wait(pid)


def num_places(tenant: Tenant) -> int:
    """Processes of a tenant that run, or will as soon as their memory is back."""
    return sum(map(has_place, tenant.processes))


def resident_bytes(kernel: RunningKernel, tenant: str) -> int:
    """Memory of a tenant's processes on the only device; what is mapped ahead of need counts as free."""
    (core,) = kernel.system.cores.values()
    spaces = [process.space for process in kernel.system.tenants.of(tenant).processes if process.space]
    pages = {frames for space in spaces for frames in space.page_table.entries}
    return len(pages) * core.loaded.kv.page_bytes


# --- who --------------------------------------------------------------------------------------------------


async def test_a_key_is_its_tenant_and_no_administrator(autojump_clock, tmp_path) -> None:
    """Whoever presents a key gets its tenant's rights and no other; a wrong key gets no session."""
    async with two_tenants(tmp_path) as pair:
        identity = await pair.alice.whoami()
        assert (identity.tenant, identity.admin, identity.uid) == ("alice", False, os.getuid())
        assert pair.kernel.client.welcome.needs_key
        assert (await pair.kernel.client.whoami()).admin
        for key in ("sk-llmos-carol", KEYS["alice"] + " ", "x" * 10_000):
            with pytest.raises(SyscallError, match="no tenant has this key") as caught:
                async with open_client(pair.kernel.socket_path, key=key):
                    raise AssertionError
            assert caught.value.errno is Errno.EPERM
        (pid,) = (await pair.alice.spawn(range(1, 9), max_tokens=500)).pids
        assert [info.pid for info in await pair.alice.ps()] == [pid]
        assert await pair.bob.ps() == ()
        bob = pair.bob
        for call in (
            bob.read(pid),
            bob.kill(pid),
            bob.stat(pid),
            bob.fork(pid),
            bob.wait(pid),
            bob.nice(pid, 1),
        ):
            with pytest.raises(SyscallError, match="EPERM"):
                await call
        for call in (bob.ps(everyone=True), bob.tenants(everyone=True), bob.shutdown()):
            with pytest.raises(SyscallError, match="EPERM"):
                await call
        await pair.alice.kill(pid)
        await pair.alice.wait(pid)


async def test_users_of_the_file_may_open_the_socket(autojump_clock, tmp_path, monkeypatch) -> None:
    """Named users are their tenants; when some are named, others than administrators are turned away."""
    uids: Iterator[int] = iter([0, 4001, 4002, os.getuid()])
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    path = write_tenants(tmp_path, alice="uids = [4001]")
    async with running_kernel(tmp_path, tenants=path) as kernel:
        assert os.stat(kernel.socket_path).st_mode & 0o777 == 0o666
        async with open_client(kernel.socket_path) as named:
            assert ((await named.whoami()).tenant, named.welcome.admin) == ("alice", False)
        with pytest.raises(SyscallError, match="user 4002 is no tenant"):
            async with open_client(kernel.socket_path):
                raise AssertionError
        async with open_client(kernel.socket_path) as own:
            assert (own.welcome.tenant, own.welcome.admin) == (f"uid:{os.getuid()}", True)


async def test_without_users_the_socket_is_the_kernels_own(autojump_clock, tmp_path) -> None:
    """Keys alone open it to nobody."""
    async with two_tenants(tmp_path) as pair:
        assert os.stat(pair.kernel.socket_path).st_mode & 0o777 == 0o600


async def test_a_weight_is_said_once(autojump_clock, tmp_path) -> None:
    """The file's weight counts; the same tenant in tenant_weights is refused by name."""
    async with two_tenants(tmp_path, alice="weight = 3") as pair:
        (alice,) = await pair.alice.tenants()
        assert (alice.usage.weight, pair.kernel.system.accounts.of("alice").weight) == (3.0, 3.0)
    path = write_tenants(tmp_path)
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigError, match="the weight of bob is in"), flatten_subgroups=True
    ):
        async with running_kernel(tmp_path, tenants=path, tenant_weights="bob=2"):
            raise AssertionError


# --- limits -----------------------------------------------------------------------------------------------


async def test_requests_per_minute(autojump_clock, tmp_path) -> None:
    """A minute's worth at once, then one each time that the error has said; the other tenant sees nothing."""
    async with two_tenants(tmp_path, alice="requests_per_minute = 6") as pair:
        pids = []
        for left in range(5, -1, -1):
            spawned = await pair.alice.spawn([1, 2], max_tokens=1)
            pids += spawned.pids
            assert spawned.rates.requests.limit == 6
            assert spawned.rates.requests.remaining == pytest.approx(left, abs=0.1)
            assert spawned.rates.tokens is None
        for _ in range(3):
            error = await refused(pair.alice.spawn([1, 2], max_tokens=1))
            assert (error.exceeded.limit, error.exceeded.value) == ("requests_per_minute", 6)
            assert 9 < error.exceeded.retry_seconds <= 10
            await trio.sleep(error.exceeded.retry_seconds - 0.1)
            await refused(pair.alice.spawn([1, 2], max_tokens=1))
            await trio.sleep(0.1)
            pids += (await pair.alice.spawn([1, 2], max_tokens=1)).pids
        (alice,) = await pair.alice.tenants()
        assert alice.num_refused == 6
        spawned = await pair.bob.spawn([1, 2], max_tokens=1)
        assert spawned.rates is None
        await finish(pair.bob, *spawned.pids)
        await finish(pair.alice, *pids)


async def test_min_nice_is_a_ceiling_of_importance(autojump_clock, tmp_path) -> None:
    """A tenant may be as nice as it likes, and only so important: at spawn and later; administrators may."""
    async with two_tenants(tmp_path, alice="min_nice = -3") as pair:
        (pid,) = (await pair.alice.spawn([1, 2], max_tokens=500, nice=-3)).pids
        await pair.alice.nice(pid, 19)
        for call in (pair.alice.spawn([1, 2], max_tokens=1, nice=-4), pair.alice.nice(pid, -4)):
            with pytest.raises(SyscallError, match=r"EPERM: nice is -4; tenant alice may have -3 and above"):
                await call
        assert (await pair.alice.stat(pid)).nice == 19
        await pair.kernel.client.nice(pid, -20)
        (other,) = (await pair.bob.spawn([1, 2], max_tokens=1, nice=-20)).pids
        await finish(pair.bob, other)
        (alice,) = await pair.alice.tenants()
        assert alice.limits.min_nice == -3
        await pair.alice.kill(pid)
        await finish(pair.alice, pid)


async def test_tokens_per_minute(autojump_clock, tmp_path) -> None:
    """Prompts count when they are admitted, output as it is made; a debt is waited for."""
    async with two_tenants(tmp_path, alice="tokens_per_minute = 600") as pair:
        (pid,) = (await pair.alice.spawn(range(1, 101), max_tokens=900)).pids
        await pair.alice.wait(pid)
        (alice,) = await pair.alice.tenants()
        assert -400 <= alice.rates.tokens.remaining < -250  # 600 - 100 - 900, and what came back meanwhile
        error = await refused(pair.alice.spawn([1], max_tokens=1))
        assert error.exceeded.retry_seconds == pytest.approx((1 - alice.rates.tokens.remaining) / 10)
        await trio.sleep(error.exceeded.retry_seconds)
        await finish(pair.alice, *(await pair.alice.spawn([1], max_tokens=1)).pids)
        error = await refused(pair.alice.spawn([1] * 601, max_tokens=1))  # more than a minute's worth: never
        assert error.exceeded.retry_seconds is None
        await finish(pair.bob, *(await pair.bob.spawn([1] * 601, max_tokens=1)).pids)


async def test_a_budget_lasts_over_restarts(autojump_clock, tmp_path) -> None:
    """Prompts count when they are admitted, output as it is made; what is spent is spent after a restart."""
    options = {"alice": "token_budget = 150", "budget_file": str(tmp_path / "budgets.json")}
    async with two_tenants(tmp_path, **options) as pair:
        await finish(pair.alice, *(await pair.alice.spawn(range(1, 101), max_tokens=20)).pids)
        (alice,) = await pair.alice.tenants()
        assert (alice.num_spent_tokens, alice.limits.token_budget) == (120, 150)
        with pytest.raises(SyscallError, match="E2BIG"):
            await pair.alice.spawn([1] * 10, max_tokens=10**6)
        await finish(pair.bob, *(await pair.bob.spawn([1] * 601, max_tokens=1)).pids)
    async with two_tenants(tmp_path, **options) as pair:
        error = await refused(pair.alice.spawn([1] * 31, max_tokens=1))
        assert error.message == (
            "token_budget of tenant alice is 150: 31 tokens more, 30 left; it does not come back"
        )
        assert error.exceeded.retry_seconds is None
        (pid,) = (await pair.alice.spawn([1] * 20, max_tokens=50)).pids  # what has begun is not cut
        assert (await pair.alice.wait(pid)).usage.num_output_tokens == 50
        for call in (pair.alice.spawn([1], max_tokens=1), pair.alice.embed([[1]])):
            await refused(call)
        (bob,) = await pair.bob.tenants()
        assert (bob.num_spent_tokens, bob.limits.token_budget) == (0, None)
    assert Spent(tmp_path / "budgets.json").of("alice") == 0
    opened = Spent(tmp_path / "budgets.json")
    opened.open()
    assert opened.of("alice") == 190
    opened.close(print)


async def test_budgets_are_one_kernels(autojump_clock, tmp_path) -> None:
    """A second kernel may not count in the same file, nor one in what is no such file: refused by name."""
    path = tmp_path / "budgets.json"
    first = Spent(path)
    first.open()
    options = {"tenants": write_tenants(tmp_path, "token_budget = 5"), "budget_file": str(path)}
    for message in (f"another kernel counts in {path}", f"{path}: .*spent"):
        with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match=message), flatten_subgroups=True):
            async with running_kernel(tmp_path, **options):
                raise AssertionError
        first.close(print)
        path.write_text('{"spent": 7}')


async def test_budgets_are_saved_meanwhile(autojump_clock, tmp_path) -> None:
    """A second after they change, so that a kernel may be killed; a disk that is full ends nothing."""
    spent, notes = Spent(tmp_path / "budgets.json"), []
    spent.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(spent.keep, run_in_place, notes.append)
        for total in (5, 7):
            spent.add("alice", 5 if total == 5 else 2)
            await trio.sleep(SAVE_SECONDS + 0.1)
            assert spent.path.read_bytes() == b'{"spent":{"alice":%d}}' % total
        tmp_path.joinpath(".budgets.json.part").mkdir()
        spent.add("alice", -3)
        await trio.sleep(SAVE_SECONDS + 0.1)
        assert "budgets were not saved" in notes[0]
        tmp_path.joinpath(".budgets.json.part").rmdir()
        await trio.sleep(SAVE_SECONDS + 0.1)
        assert spent.path.read_bytes() == b'{"spent":{"alice":4}}'
        nursery.cancel_scope.cancel()
    spent.close(notes.append)


async def test_what_did_not_come_about_is_not_counted(autojump_clock, tmp_path) -> None:
    """A refused call costs nothing, whoever refuses it."""
    limits = "requests_per_minute = 100\ntokens_per_minute = 1000\nmax_waiting = 4"
    async with two_tenants(tmp_path, alice=limits) as pair:
        tenant = pair.kernel.system.tenants.of("alice")
        (pid,) = (await pair.alice.spawn([1] * 10, max_tokens=200, interactive=True)).pids
        await pair.alice.read(pid)
        before = tenant.rates().requests.remaining
        for call in (
            pair.alice.spawn([]),
            pair.alice.spawn([1], max_tokens=10**6),
            pair.alice.spawn([1], max_tokens=1, num_samples=5),
            pair.alice.spawn([1] * 1000, max_tokens=1),
            pair.alice.write(pid, [1]),  # it does not wait for input
            pair.alice.fork(pid, 5),
        ):
            with pytest.raises(SyscallError):
                await call
        assert tenant.rates().requests.remaining >= before
        made = len((await pair.alice.read(pid)).tokens)
        assert tenant.rates().tokens.remaining >= 1000 - 10 - made - 2
        await pair.alice.kill(pid)
        await finish(pair.alice, pid)


async def test_turns_and_forks_count_as_requests(autojump_clock, tmp_path) -> None:
    """Three of them, whatever their kind; the fourth waits."""
    async with two_tenants(tmp_path, alice="requests_per_minute = 3") as pair:
        (pid,) = (await pair.alice.spawn([1, 2], max_tokens=2, interactive=True)).pids
        await wait_until(lambda: pair.kernel.system.table.get(pid).turn_is_over)
        await pair.alice.write(pid, [3], 2)
        children = (await pair.alice.fork(pid, 2)).pids
        await refused(pair.alice.fork(pid))
        await wait_until(lambda: pair.kernel.system.table.get(pid).turn_is_over)
        await refused(pair.alice.write(pid, [3], 2))
        for each in (pid, *children):
            await pair.alice.kill(each)
            await pair.alice.wait(each)


async def test_max_waiting_bounds_the_queue(autojump_clock, tmp_path) -> None:
    """Of a burst, as many wait as may; more samples than that never can."""
    async with two_tenants(tmp_path, alice="max_waiting = 3", max_running=2) as pair:
        pids = []
        for _ in range(3):
            pids += (await pair.alice.spawn([1, 2], max_tokens=50)).pids
        await wait_until(lambda: num_places(pair.kernel.system.tenants.of("alice")) == 2)
        for _ in range(2):
            pids += (await pair.alice.spawn([1, 2], max_tokens=50)).pids
        error = await refused(pair.alice.spawn([1, 2], max_tokens=50))
        assert (error.exceeded.limit, error.exceeded.retry_seconds) == ("max_waiting", 1.0)
        error = await refused(pair.alice.spawn([1, 2], max_tokens=50, num_samples=4))
        assert error.exceeded.retry_seconds is None
        bobs = [(await pair.bob.spawn([1, 2], max_tokens=5)).pids[0] for _ in range(10)]
        await finish(pair.bob, *bobs)
        await finish(pair.alice, *pids)


@pytest.mark.parametrize("policy", ["fair", "fcfs"])
async def test_max_running_passes_over_its_own_tenant_only(autojump_clock, tmp_path, policy) -> None:
    """Never more than two of one tenant run; what they leave, the other one uses, though it came later."""
    async with two_tenants(tmp_path, alice="max_running = 2", max_running=5, policy=policy) as pair:
        alices = [(await pair.alice.spawn([1, 2], max_tokens=30)).pids[0] for _ in range(9)]
        bobs = [(await pair.bob.spawn([1, 2], max_tokens=30)).pids[0] for _ in range(9)]
        tenants = pair.kernel.system.tenants
        seen = set()
        while tenants.of("alice").processes or tenants.of("bob").processes:
            seen.add((num_places(tenants.of("alice")), num_places(tenants.of("bob"))))
            await trio.sleep(0.003)
        assert max(alice for alice, _ in seen) == 2
        assert (2, 3) in seen
        assert max(bob for _, bob in seen) <= 5
        await finish(pair.alice, *alices)
        await finish(pair.bob, *bobs)


async def test_a_tenant_alone_at_its_cap_stalls_nobody(autojump_clock, tmp_path) -> None:
    """With idle memory about and everyone who waits held back, the kernel neither spins nor evicts."""
    async with two_tenants(tmp_path, alice="max_running = 1") as pair:
        (chat,) = (await pair.bob.spawn([5] * 40, max_tokens=2, interactive=True)).pids
        await wait_until(lambda: pair.kernel.system.table.get(chat).turn_is_over)
        pids = [(await pair.alice.spawn([1, 2], max_tokens=20)).pids[0] for _ in range(4)]
        await finish(pair.alice, *pids)
        assert (await pair.bob.stat(chat)).usage.num_preemptions == 0
        await pair.bob.kill(chat)
        await finish(pair.bob, chat)


async def test_memory_of_a_tenant_stays_within_its_cap(autojump_clock, tmp_path) -> None:
    """Twelve processes and two chats under a cap of one MiB: its own give way, nobody else's ever do."""
    async with two_tenants(
        tmp_path,
        alice="max_resident_mib = 1",
        make_sim=partial(SimDriver, kv=BIG_PAGES, num_frames=64),
    ) as pair:
        (core,) = pair.kernel.system.cores.values()
        kv = core.loaded.kv
        most = (1 << 20) // kv.page_bytes
        page = kv.tokens_per_page
        assert most >= 4
        (other,) = (await pair.bob.spawn([7] * page, max_tokens=page, interactive=True)).pids
        chats = [(await pair.alice.spawn([i] * page, max_tokens=2, interactive=True)).pids[0] for i in (1, 2)]
        pids = [(await pair.alice.spawn([9 + i] * (page - 3), max_tokens=page)).pids[0] for i in range(12)]
        tenant, peak = pair.kernel.system.tenants.of("alice"), 0
        while any(not process.turn_is_over for process in tenant.processes):
            held = resident_bytes(pair.kernel, "alice") // kv.page_bytes
            peak = max(peak, held)
            assert held <= most
            await trio.sleep(0.002)
        assert peak > most // 2
        assert (await pair.bob.stat(other)).usage.num_preemptions == 0
        (alice,) = await pair.alice.tenants()
        assert alice.limits.max_resident_bytes == 1 << 20
        assert alice.usage.num_resident_bytes <= 1 << 20
        with pytest.raises(SyscallError, match=r"ENOMEM.*tenant alice may have memory"):
            await pair.alice.spawn([1], max_tokens=most * page)
        with pytest.raises(SyscallError, match=r"ENOMEM.*tenant alice may have memory"):
            await pair.alice.write(chats[0], [1], most * page)
        (whole,) = (await pair.alice.spawn([1] * 5, ignore_eos=True)).pids  # as long as its memory holds
        assert (await pair.alice.wait(whole)).usage.num_output_tokens == most * page - 5
        for client, each in ((pair.alice, chats[0]), (pair.alice, chats[1]), (pair.bob, other)):
            await client.kill(each)
            await client.wait(each)
        await finish(pair.alice, *pids)


# --- isolation, and what may be looked at -----------------------------------------------------------------


async def test_equal_prompts_of_two_tenants_share_nothing(autojump_clock, tmp_path) -> None:
    """No page, no cached token, and no difference in time that would tell one what the other asked."""
    make_sim = partial(SimDriver, cost=CostModel(base=0.001, per_token=0.0001))
    prompt = [3 + i % 200 for i in range(600)]
    async with two_tenants(tmp_path, make_sim=make_sim) as pair:

        async def ask(client: Client) -> tuple[int, float]:
            (pid,) = (await client.spawn(prompt, max_tokens=2)).pids
            usage = (await client.wait(pid)).usage
            return usage.num_cached_tokens, round(usage.first_token_seconds, 9)

        alone = await ask(pair.alice)
        repeated = await ask(pair.alice)
        other = await ask(pair.bob)
        assert alone[0] == other[0] == 0
        assert repeated[0] > 0
        assert repeated[1] < alone[1]
        assert other[1] == pytest.approx(alone[1], rel=1e-6)


async def test_usage_adds_up(autojump_clock, tmp_path) -> None:
    """Shares of the last minute are by service; counters conserve; an administrator sees everybody."""
    async with two_tenants(tmp_path, alice="weight = 2", bob="max_running = 7") as pair:
        await finish(pair.alice, *(await pair.alice.spawn([1] * 20, max_tokens=30)).pids)
        await finish(pair.bob, *(await pair.bob.spawn([1] * 20, max_tokens=10, num_samples=2)).pids)
        everyone = {tenant.name: tenant for tenant in await pair.kernel.client.tenants(everyone=True)}
        assert list(everyone) == ["alice", "bob", f"uid:{os.getuid()}"]
        alice, bob = everyone["alice"], everyone["bob"]
        assert (alice.usage.num_prompt_tokens, alice.usage.num_output_tokens) == (20, 30)
        assert bob.usage.num_output_tokens == 20
        total = 20 + 2 * 30 + bob.usage.num_prompt_tokens + 2 * 20
        assert alice.share == pytest.approx(80 / total)
        assert alice.share + bob.share == pytest.approx(1)
        assert bob.limits.max_running == 7
        assert (
            alice.num_processes,
            alice.usage.num_running,
            alice.usage.num_waiting,
            alice.usage.num_resident_bytes,
        ) == (0,) * 4
        await trio.sleep(61)
        assert [tenant.share for tenant in await pair.alice.tenants()] == [0.0]
        statistics = await pair.kernel.client.statistics()
        assert statistics.num_output_tokens == sum(t.usage.num_output_tokens for t in everyone.values())


# --- any life ---------------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("spawn"), st.booleans(), st.integers(1, 60), st.integers(1, 50), st.integers(1, 3)),
        st.tuples(st.just("chat"), st.booleans(), st.integers(1, 60), st.integers(1, 20), st.just(1)),
        st.tuples(st.sampled_from(["write", "stop", "cont", "kill", "fork"]), st.integers(0, 30)),
        st.tuples(st.just("pause"), st.floats(0.001, 0.3)),
    ),
    min_size=5,
    max_size=30,
)


async def live(
    operations: list[tuple], policy: str, num_frames: int, max_running: int, swap_mib: int
) -> None:
    """Two tenants, one with caps, on a small device: what each asks for ends, and the caps hold."""
    with tempfile.TemporaryDirectory() as folder:
        caps = f"max_resident_mib = 1\nmax_running = {max_running}"
        make_sim = partial(SimDriver, kv=BIG_PAGES, num_frames=num_frames)
        async with two_tenants(
            Path(folder), alice=caps, make_sim=make_sim, policy=policy, swap_mib=swap_mib
        ) as pair:
            tenant = pair.kernel.system.tenants.of("alice")
            pids: list[tuple[Client, int]] = []
            is_over = False

            async def watch() -> None:
                while not is_over:
                    assert resident_bytes(pair.kernel, "alice") <= 1 << 20
                    assert num_places(tenant) <= max_running
                    await trio.sleep(0.001)

            async def disturb() -> None:
                for name, *arguments in operations:
                    if name == "pause":
                        await trio.sleep(arguments[0])
                    elif name in ("spawn", "chat"):
                        is_alice, length, max_tokens, num_samples = arguments
                        client = pair.alice if is_alice else pair.bob
                        spawned = await client.spawn(
                            [length] * length, max_tokens=max_tokens, num_samples=num_samples,
                            interactive=name == "chat",
                        )  # fmt: skip
                        pids.extend((client, pid) for pid in spawned.pids)
                    elif pids:
                        client, pid = pids[arguments[0] % len(pids)]
                        with suppress(SyscallError):  # it has exited, does not wait for input, is too long
                            if name == "write":
                                await client.write(pid, [1, 2, 3], 5)
                            elif name == "fork":
                                pids.append((client, (await client.fork(pid)).pids[0]))
                            else:
                                await getattr(client, name)(pid)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await disturb()
                with trio.fail_after(1000):
                    for client, pid in pids:
                        if (await client.stat(pid)).state == "STOPPED":
                            await client.cont(pid)
                    for client, pid in pids:
                        async for _ in client.stream(pid):
                            pass
                is_over = True
            for client, pid in pids:
                await client.kill(pid)
                await client.wait(pid)
            assert tenant.processes == set()


@settings(max_examples=30)
@given(
    operations=OPERATIONS,
    policy=st.sampled_from(["fair", "fcfs"]),
    num_frames=st.sampled_from([16, 24, 64]),
    max_running=st.integers(1, 5),
    swap_mib=st.sampled_from([0, 1, 16]),
)
def test_caps_hold_and_everybody_is_served(
    operations: list[tuple], policy: str, num_frames: int, max_running: int, swap_mib: int
) -> None:
    """Whatever two tenants do: no cap is passed, no process waits for ever, nothing leaks."""
    trio.run(
        live, operations, policy, num_frames, max_running, swap_mib, clock=MockClock(autojump_threshold=0)
    )
