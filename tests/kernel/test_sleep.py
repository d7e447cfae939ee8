"""Devices that sleep: nothing is left in them, nobody ends, and everybody goes on with the same tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver
from llmos.cost import CopyCost
from llmos.sched.core import CoreStatistics
from syscalls.client import ConnectionLost
from syscalls.errno import Errno, SyscallError
from syscalls.system import DeviceInfo
from tests.kernel.harness import MODEL, RunningKernel, running_kernel, wait_until
from tests.kernel.test_swap import finish, prompt, read_turn
from tests.kernel.test_tenants import two_tenants

LEVELS = pytest.mark.parametrize("level", [1, 2])


def statistics_of(kernel: RunningKernel) -> CoreStatistics:
    """Of the only device."""
    (core,) = kernel.system.cores.values()
    return core.statistics()


async def device_of(kernel: RunningKernel) -> DeviceInfo:
    """The only device, as clients see it."""
    (device,) = await kernel.client.devices()
    return device


@LEVELS
@pytest.mark.parametrize("preempt", ["swap", "recompute"])
async def test_everybody_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, autojump_clock: trio.abc.Clock, level: int, preempt: str
) -> None:
    """Those that decode, one in its prompt, one that is stopped and one that waits for its person."""
    make = partial(SimDriver, host_cost=CopyCost(1e-5, 1e6))
    options = {"swap_mib": 1, "preempt": preempt, "max_chunk_tokens": 16}
    async with running_kernel(tmp_path, make, **options) as kernel:
        client = kernel.client
        (chat,) = (await client.spawn(prompt(50, 40), max_tokens=5, interactive=True)).pids
        first = await read_turn(client, chat, 0)
        pids = [(await client.spawn(prompt(i, 20 + i), max_tokens=300)).pids[0] for i in range(8)]
        await wait_until(lambda: all(len(kernel.system.table.get(pid).output) > 20 for pid in pids))
        await client.stop(pids[3])
        (late,) = (await client.spawn(prompt(60, 400), max_tokens=10)).pids
        await trio.sleep(0.05)
        assert 0 < kernel.system.table.get(late).num_computed < 400
        await client.sleep(level)
        num_steps, num_output = statistics_of(kernel).num_steps, statistics_of(kernel).num_output_tokens
        memory = statistics_of(kernel).memory
        assert (memory.num_free, memory.num_spaces) == (memory.num_frames, 0)
        assert (await device_of(kernel)).state == "sleeping"
        (model,) = await client.models()
        assert not model.ready
        (young,) = (await client.spawn(prompt(70, 30), max_tokens=10)).pids
        await client.write(chat, (7, 8, 9), max_tokens=5)
        await trio.sleep(1000)
        assert statistics_of(kernel).num_steps == num_steps
        assert statistics_of(kernel).num_output_tokens == num_output
        await client.wake()
        assert (await device_of(kernel)).state == "ready"
        await client.cont(pids[3])
        for number, pid in enumerate(pids):
            assert await finish(client, pid) == MODEL.expected_tokens(prompt(number, 20 + number), 300)
        assert await finish(client, late) == MODEL.expected_tokens(prompt(60, 400), 10)
        assert await finish(client, young) == MODEL.expected_tokens(prompt(70, 30), 10)
        history = (*prompt(50, 40), *first, 7, 8, 9)
        assert await read_turn(client, chat, 5) == MODEL.expected_tokens(history, 5)
        await client.kill(chat)
        await client.wait(chat)
        assert (await device_of(kernel)).num_restarts == 0
        assert len(kernel.sims["sim:0"]) == level  # drivers: the second level has ended the first one


async def test_the_memory_comes_back_from_below(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """On the first level nothing is computed again that was copied."""
    make = partial(SimDriver, host_cost=CopyCost(1e-5, 1e6))
    async with running_kernel(tmp_path, make, swap_mib=1, preempt="swap") as kernel:
        (pid,) = (await kernel.client.spawn(prompt(1, 64), max_tokens=200)).pids
        await wait_until(lambda: len(kernel.system.table.get(pid).output) > 50)
        await kernel.client.sleep()
        await kernel.client.wake()
        assert await finish(kernel.client, pid) == MODEL.expected_tokens(prompt(1, 64), 200)
        assert statistics_of(kernel).num_prompt_tokens == 64
        assert statistics_of(kernel).swap.tiers["host"].num_bytes_in > 0


@LEVELS
async def test_twice_is_once(tmp_path: Path, autojump_clock: trio.abc.Clock, level: int) -> None:
    """Sleeping devices are told to sleep, deeper too, and those that are awake to wake."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        await client.wake()
        await client.sleep(level)
        await client.sleep(level)
        await client.sleep(2)
        await client.sleep(1)
        await client.wake()
        await client.wake()
        assert (await device_of(kernel)).state == "ready"
        (pid,) = (await client.spawn(prompt(1, 10), max_tokens=10)).pids
        assert await finish(client, pid) == MODEL.expected_tokens(prompt(1, 10), 10)


async def test_woken_before_it_is_at_rest(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Copies take seconds; whoever waits for the end is told that it will not come."""
    make = partial(SimDriver, host_cost=CopyCost(2.0, 1e6))
    async with running_kernel(tmp_path, make, swap_mib=1, preempt="swap") as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1, 64), max_tokens=200)).pids
        await wait_until(lambda: len(kernel.system.table.get(pid).output) > 20)
        async with trio.open_nursery() as nursery:

            async def sleep() -> None:
                with pytest.raises(SyscallError, match="woken before it was at rest") as caught:
                    await client.sleep()
                assert caught.value.errno is Errno.EBUSY

            nursery.start_soon(sleep)
            await trio.sleep(1.0)
            await client.wake()
        assert await finish(client, pid) == MODEL.expected_tokens(prompt(1, 64), 200)


@LEVELS
async def test_the_driver_dies_while_all_sleep(
    tmp_path: Path, autojump_clock: trio.abc.Clock, level: int
) -> None:
    """On the first level it is started again, and stays asleep; on the second there is none to die."""
    async with running_kernel(tmp_path, swap_mib=1) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1, 64), max_tokens=200)).pids
        await wait_until(lambda: len(kernel.system.table.get(pid).output) > 20)
        await client.sleep(level)
        num_steps = statistics_of(kernel).num_steps
        kernel.sim.kill()
        await trio.sleep(30)
        assert (await device_of(kernel)).state == "sleeping"
        assert statistics_of(kernel).num_steps == num_steps
        await client.wake()
        assert await finish(client, pid) == MODEL.expected_tokens(prompt(1, 64), 200)
        assert len(kernel.sims["sim:0"]) == 2


@LEVELS
async def test_killed_and_saved_asleep(tmp_path: Path, autojump_clock: trio.abc.Clock, level: int) -> None:
    """A process that sleeps can be killed, forked and saved; what is restored goes on after all woke."""
    async with running_kernel(tmp_path, swap_mib=1, preempt="swap") as kernel:
        client = kernel.client
        pids = [(await client.spawn(prompt(i, 64), max_tokens=200)).pids[0] for i in range(2)]
        await wait_until(lambda: all(len(kernel.system.table.get(pid).output) > 20 for pid in pids))
        await client.sleep(level)
        await client.checkpoint(pids[0], "nap")
        (child,) = (await client.fork(pids[0])).pids
        await client.kill(pids[0])
        await client.wait(pids[0])
        (restored,) = (await client.restore("nap")).pids
        await client.wake()
        assert await finish(client, pids[1]) == MODEL.expected_tokens(prompt(1, 64), 200)
        for pid in (child, restored):
            tokens = await read_turn(client, pid, 0)
            await client.wait(pid)
            assert tokens == MODEL.expected_tokens(prompt(0, 64), 200)


async def test_who_may_and_how_deep(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Administrators, on two levels."""
    async with two_tenants(tmp_path) as pair:
        for call in (pair.bob.sleep(), pair.bob.wake()):
            with pytest.raises(SyscallError, match="EPERM"):
                await call
        with pytest.raises(SyscallError, match="level is 3; the limit is 1 to 2") as caught:
            await pair.kernel.client.sleep(3)
        assert caught.value.parameter == "level"


@LEVELS
async def test_nobody_waits_for_who_sleeps(
    tmp_path: Path, autojump_clock: trio.abc.Clock, level: int
) -> None:
    """A kernel that stops gives running processes their grace; those that sleep could not use it."""
    async with running_kernel(tmp_path, swap_mib=1, check_leaks=False) as kernel:
        client = kernel.client
        await client.spawn(prompt(1, 64), max_tokens=200, detached=True)
        await client.sleep(level)
        began = trio.current_time()
        await client.shutdown(1000.0)
        with pytest.raises(ConnectionLost):
            await client.events(10**9, follow=True)
        assert trio.current_time() - began < 100


async def test_a_driver_that_does_not_come_back(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Its model's files are gone when it wakes: whoever woke it is told, and its processes end."""
    num_starts = 0

    def make(name: str) -> SimDriver:
        nonlocal num_starts
        num_starts += 1
        if num_starts > 1:
            raise OSError("no driver")
        return SimDriver(name=name)

    async with running_kernel(tmp_path, make) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1, 64), max_tokens=200)).pids
        await wait_until(lambda: len(kernel.system.table.get(pid).output) > 20)
        await client.sleep(2)
        with pytest.raises(SyscallError, match="sim:0 could not be woken") as caught:
            await client.wake()
        assert caught.value.errno is Errno.EIO
        assert (await client.wait(pid)).status.reason == "error"
