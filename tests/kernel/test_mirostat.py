"""Mirostat's state travels with its process: swapped, forked, saved, or after the device was lost."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from drivers.sim import SimDriver
from llmos.cost import CopyCost
from syscalls.sampling import Mirostat, Sampling
from tests.kernel.harness import MODEL, running_kernel, wait_until
from tests.reading import finish

SAMPLING = Sampling(temperature=0.8, seed=7, mirostat=Mirostat(2))


def prompt(number: int, length: int = 30) -> tuple[int, ...]:
    """A prompt that nobody else has."""
    return tuple((number * 37 + i) % 500 for i in range(length))


async def test_preempted_ones_emit_what_quiet_ones_do(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Memory for ten, forty admitted: some lose theirs in the middle, none its mu."""
    make = partial(SimDriver, num_frames=10 * 2 * 5, host_cost=CopyCost(1e-5, 1e6))
    async with running_kernel(tmp_path, make, swap_mib=1, preempt="auto") as kernel:
        pids = []
        for number in range(40):
            pids += (await kernel.client.spawn(prompt(number), max_tokens=40, sampling=SAMPLING)).pids
        for number, pid in enumerate(pids):
            expected = MODEL.expected_tokens(prompt(number), 40, SAMPLING)
            assert await finish(kernel.client, pid) == expected
        (core,) = kernel.system.cores.values()
        assert core.statistics().num_preemptions > 0
        assert expected != MODEL.expected_tokens(prompt(39), 40, Sampling(temperature=0.8, seed=7))


async def test_a_lost_device_a_fork_and_an_image_keep_it(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A process that was saved and restored, its child, and itself on a new driver go on alike."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1), max_tokens=60, sampling=SAMPLING)).pids
        expected = MODEL.expected_tokens(prompt(1), 60, SAMPLING)
        await wait_until(lambda: len(kernel.system.table.get(pid).output) > 10)
        await client.checkpoint(pid, "middle")
        (child,) = (await client.fork(pid)).pids
        kernel.sim.kill()
        (restored,) = (await client.restore("middle")).pids
        for each in (pid, child, restored):
            assert await finish(client, each) == expected
