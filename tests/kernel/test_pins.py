"""Pins on a whole kernel: what outlasts what in little memory, for how long, and that nobody starves."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver
from syscalls.client import Client
from syscalls.errno import SyscallError
from syscalls.system import CacheInfo
from tests.kernel.harness import running_kernel, wait_until
from tests.kernel.test_tenants import two_tenants

NUM_FRAMES = 64  # pages of 16 tokens in two frames: 32 pages
MAKE_SIM = partial(SimDriver, num_frames=NUM_FRAMES)
NUM_TOKENS = 80  # of a prompt: 5 pages; the token that follows is not computed


def prompt(number: int, num_tokens: int = NUM_TOKENS) -> list[int]:
    """Tokens that share no beginning with another number's."""
    return [number, *range(1, num_tokens)]


async def finish(client: Client, number: int, pin_seconds: float = 0.0, num_tokens: int = NUM_TOKENS) -> int:
    """Run a process to its end; returns how many tokens of its prompt it found in memory."""
    tokens = prompt(number, num_tokens)
    spawned = await client.spawn(tokens, max_tokens=1, pin_seconds=pin_seconds)
    waited = await client.wait(spawned.pids[0])
    assert waited.usage.num_preemptions == 0
    return waited.usage.num_cached_tokens


async def cache_of(client: Client) -> CacheInfo:
    """The prefix cache of the only device."""
    (device,) = await client.devices()
    assert device.cache is not None
    return device.cache


async def fill(client: Client, number: int) -> None:
    """Have all but five pages taken by another process, the last one mapped ahead; it is gone in the end."""
    assert await finish(client, number, num_tokens=26 * 16 - 1) == 0


async def test_a_pinned_prefix_outlasts_one_of_equal_value_for_its_time(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """It is older than the other, and stays; when its time is over it goes like any."""
    async with running_kernel(tmp_path, MAKE_SIM, cache_policy="lru") as kernel:
        client = kernel.client
        await finish(client, 1, pin_seconds=100.0)
        await finish(client, 2)
        assert (await cache_of(client)).num_pinned_pages == 5
        (memory,) = await client.meminfo()
        assert [tenant.pinned for tenant in memory.tenants] == [5 * 512]
        await fill(client, 500)
        assert await finish(client, 1) == NUM_TOKENS - 1
        assert await finish(client, 2) == 0
        await trio.sleep(101.0)
        assert (await cache_of(client)).num_pinned_pages == 0
        await fill(client, 501)
        await fill(client, 502)
        assert await finish(client, 1) == 0


async def test_a_pin_starves_nobody(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """With all of the memory pinned another tenant's process gets all of it, at once."""
    async with two_tenants(tmp_path, make_sim=MAKE_SIM, pin_mib=1) as pair:
        for number in range(6):
            await finish(pair.alice, number, pin_seconds=1000.0)
        cache = await cache_of(pair.alice)
        assert cache.num_pinned_pages == cache.num_pages >= 30
        assert await finish(pair.bob, 7, num_tokens=32 * 16 - 1) == 0
        assert (await cache_of(pair.alice)).num_pinned_pages == 0


async def test_what_a_tenant_may_pin(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """A quarter of the memory: of what is more, the first pages. Another tenant has its own quarter."""
    async with two_tenants(tmp_path, make_sim=MAKE_SIM) as pair:
        await finish(pair.alice, 1, pin_seconds=1000.0, num_tokens=200)
        assert (await cache_of(pair.alice)).num_pinned_pages == 8
        await finish(pair.bob, 1, pin_seconds=1000.0)
        assert (await cache_of(pair.bob)).num_pinned_pages == 8 + 5
        await finish(pair.bob, 5, num_tokens=18 * 16 - 1)
        assert await finish(pair.alice, 1, num_tokens=200) == 8 * 16
        assert await finish(pair.bob, 1) == NUM_TOKENS - 1


async def test_dropped_with_the_rest(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Whoever drops the cache means the pinned pages, too; they may be pinned again."""
    async with running_kernel(tmp_path, MAKE_SIM) as kernel:
        for _ in range(2):
            assert await finish(kernel.client, 1, pin_seconds=1000.0) == 0
            assert (await cache_of(kernel.client)).num_pinned_pages == 5
            assert (await kernel.client.drop_cache()).num_pages == 5
            assert (await cache_of(kernel.client)).num_pinned_pages == 0


async def test_a_process_that_lost_its_memory_pins_nothing(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """It is not over: what it left behind in the cache is anybody's until then."""
    async with running_kernel(tmp_path, MAKE_SIM, preempt="recompute") as kernel:
        client = kernel.client
        spawned = [
            await client.spawn(prompt(number), max_tokens=300, ignore_eos=True, pin_seconds=1000.0)
            for number in range(2)
        ]
        processes = [kernel.system.table.get(each.pids[0]) for each in spawned]
        await wait_until(lambda: any(process.num_preemptions for process in processes))
        cache = await cache_of(client)
        assert cache.num_pages > 0
        assert cache.num_pinned_pages == 0
        for process in processes:
            await client.kill(process.pid)
            await client.wait(process.pid)
        assert (await cache_of(client)).num_pinned_pages == 8


async def test_children_and_images_keep_the_wish(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """A fork's children pin what they leave; so does a process that was saved and restored."""
    async with running_kernel(tmp_path, MAKE_SIM) as kernel:
        client = kernel.client
        (pid,) = (
            await client.spawn(prompt(1), max_tokens=1, interactive=True, pin_seconds=1000.0, detached=True)
        ).pids
        (child,) = (await client.fork(pid)).pids
        await client.checkpoint(pid, "saved")
        await client.kill(pid)
        await client.kill(child)
        (restored,) = (await client.restore("saved")).pids
        assert kernel.system.table.get(child).pin_seconds == 1000.0
        assert kernel.system.table.get(restored).pin_seconds == 1000.0
        await client.kill(restored)
        for each in (pid, child, restored):
            await client.wait(each)


@pytest.mark.parametrize(
    ("options", "seconds", "limit"),
    [({}, -1.0, "3600"), ({}, 3600.5, "3600"), ({"pin_max_seconds": 5.0}, 6.0, "5"),
     ({"prefix_cache": False}, 1.0, "0")],
)  # fmt: skip
async def test_limits(
    autojump_clock: trio.abc.Clock, tmp_path: Path, options: dict[str, object], seconds: float, limit: str
) -> None:
    """The error names field, value and limit."""
    async with running_kernel(tmp_path, MAKE_SIM, **options) as kernel:
        with pytest.raises(
            SyscallError, match=f"pin_seconds is {seconds}; the limit is 0 to {limit}$"
        ) as one:
            await kernel.client.spawn([1, 2], pin_seconds=seconds)
        with pytest.raises(
            SyscallError, match=f"pin_seconds is {seconds}; the limit is 0 to {limit}$"
        ) as two:
            await kernel.client.embed([(1, 2)], pin_seconds=seconds)
        assert one.value.parameter == two.value.parameter == "pin_seconds"
        with pytest.raises(SyscallError, match="pin_seconds is nan"):
            await kernel.client.spawn([1, 2], pin_seconds=float("nan"))


async def test_a_text_that_became_a_vector_is_pinned(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Its pages stay like those of a process that generates, and are found by the next one."""
    async with running_kernel(tmp_path, MAKE_SIM, cache_policy="lru") as kernel:
        client = kernel.client
        await client.embed([prompt(1)], pin_seconds=100.0, pooling="last")
        await finish(client, 2)
        assert (await cache_of(client)).num_pinned_pages == 5
        await fill(client, 500)
        assert await finish(client, 2) == 0
        assert await finish(client, 1) == NUM_TOKENS - 1
