"""drop_cache on a whole kernel: whose pages go, that nothing is lost, and that nobody reads anything else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver
from llmos.mm import prefix_drop
from syscalls.client import Client
from tests.kernel.harness import RunningKernel, running_kernel, wait_until
from tests.kernel.test_tenants import two_tenants

PROMPT = list(range(1, 200))


async def num_cached_tokens(client: Client, prompt: list[int] = PROMPT, cache_salt: str = "") -> int:
    """Run a process to its end; returns how much of its prompt it found in memory."""
    spawned = await client.spawn(prompt, max_tokens=1, cache_salt=cache_salt)
    return (await client.wait(spawned.pids[0])).usage.num_cached_tokens


def num_cached_frames(kernel: RunningKernel) -> int:
    """Frames that only the prefix cache keeps, of all devices."""
    return sum(list_cached_frames(kernel))


def list_cached_frames(kernel: RunningKernel) -> list[int]:
    """The same, by device."""
    found = [core.statistics().memory for core in kernel.system.cores.values()]
    return [memory.num_cached for memory in found if memory is not None]


async def test_what_comes_next_finds_nothing(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """On every device; the event ring says who did it."""
    async with running_kernel(tmp_path, devices=2) as kernel:
        client = kernel.client
        spawned = [await client.spawn([start, *PROMPT], max_tokens=1) for start in range(4)]
        for each in spawned:  # at once, so that both devices have some
            await client.wait(each.pids[0])
        assert all(list_cached_frames(kernel))
        dropped = await client.drop_cache()
        assert dropped.num_pages > 0
        assert num_cached_frames(kernel) == 0
        assert (await client.drop_cache()).num_pages == 0
        assert await num_cached_tokens(client, [0, *PROMPT]) == 0
        events = [event for event in await client.events() if event.subsystem == "cache"]
        assert [f"{dropped.num_pages} pages" in event.text for event in events] == [True]


async def test_a_process_keeps_what_it_maps(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Its pages stay in the cache while it lives, and its output is the one that it would have had."""
    async with running_kernel(tmp_path) as kernel:
        client, outputs = kernel.client, []
        for is_dropped in (False, True):
            spawned = await client.spawn(PROMPT, max_tokens=40, interactive=True)
            (pid,) = spawned.pids
            await wait_until(lambda pid=pid: len(kernel.system.table.get(pid).output) == 40)
            if is_dropped:
                await client.drop_cache()
                (info,) = [p for p in (await client.meminfo())[0].processes if p.pid == pid]
                assert info.private + info.shared > 0
            await client.write(pid, [7, 8, 9], 40)
            await wait_until(lambda pid=pid: len(kernel.system.table.get(pid).output) == 80)
            outputs.append((await client.read(pid)).tokens)
            await client.kill(pid)
            await client.wait(pid)
        assert outputs[0] == outputs[1]


async def test_steps_go_on_between_the_pieces(
    autojump_clock: trio.abc.Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a device whose steps take no time: one decodes while the cache is dropped."""
    monkeypatch.setattr(prefix_drop, "DROP_PIECE", 1)
    async with running_kernel(tmp_path, partial(SimDriver, slowness=0.0)) as kernel:
        client = kernel.client
        for start in range(8):
            await num_cached_tokens(client, [start, *PROMPT])
        (pid,) = (await client.spawn([9, 9, 9], max_tokens=2000, ignore_eos=True)).pids
        process = kernel.system.table.get(pid)
        while not process.output:  # time stands still while steps take none
            await trio.lowlevel.checkpoint()
        before = len(process.output)
        dropped = await client.drop_cache()
        assert len(process.output) - before > dropped.num_pages / 8 > 4
        assert not process.turn_is_over
        await client.kill(pid)
        await client.wait(pid)


async def test_whose_pages_go(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """A tenant's own, under each of its salts; an administrator's call is everybody's."""
    async with two_tenants(tmp_path, alice="admin = true") as pair:
        for client in (pair.alice, pair.bob):
            await num_cached_tokens(client)
            await num_cached_tokens(client, cache_salt="secret")
        (device,) = await pair.alice.meminfo()
        cached = {tenant.tenant: tenant.cached for tenant in device.tenants}
        assert cached["alice"] == cached["bob"] > 0
        dropped = await pair.bob.drop_cache()
        (device,) = await pair.alice.meminfo()
        assert {t.tenant: t.cached for t in device.tenants if t.cached} == {"alice": cached["alice"]}
        assert (await pair.alice.drop_cache()).num_pages == dropped.num_pages
        assert num_cached_frames(pair.kernel) == 0
