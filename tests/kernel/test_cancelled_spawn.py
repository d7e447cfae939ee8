"""What if a client is cancelled in a spawn, and closed before the answer? Nothing of it lives on."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from syscalls.client import open_client
from syscalls.process import Spawned
from tests.kernel.harness import RunningKernel, running_kernel, wait_until


async def spawn_and_leave(kernel: RunningKernel, ticks: int, with_client: bool) -> Spawned | None:
    """Spawn detached; cancelled after so many ticks, alone or with the client's whole block."""
    spawned = None
    with trio.CancelScope() as around:
        async with open_client(kernel.socket_path) as client, trio.open_nursery() as nursery:

            async def spawn() -> None:
                nonlocal spawned
                spawned = await client.spawn([1, 2, 3], max_tokens=400, detached=True)

            nursery.start_soon(spawn)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            (around if with_client else nursery.cancel_scope).cancel()
    return spawned


@pytest.mark.parametrize("with_client", [False, True])
@pytest.mark.parametrize("ticks", range(12))
async def test_closed_at_once(
    autojump_clock: trio.abc.Clock, tmp_path: Path, ticks: int, with_client: bool
) -> None:
    """Whenever the cancel comes: a detached process lives on exactly when its pid was told."""
    async with running_kernel(tmp_path) as kernel:
        spawned = await spawn_and_leave(kernel, ticks, with_client)
        await wait_until(lambda: kernel.system.num_sessions == 1)
        assert {process.pid for process in kernel.system.table} == set(spawned.pids if spawned else ())
        for pid in spawned.pids if spawned else ():
            await kernel.client.kill(pid)
            await kernel.client.wait(pid)
