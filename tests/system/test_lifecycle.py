"""What if processes are killed in every state on a real driver? Everything comes back, on both sides."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from llmos.bench.server import Server, running_server
from syscalls.client import Client, open_client
from syscalls.session import SpawnOptions
from syscalls.sync import SyncClient
from tests.system.leaks import assert_no_leak, count
from tests.system.middle import in_the_middle

PROMPT = tuple(300 + i % 150 for i in range(120))
LONG = 1900  # tokens: nearly a context, so that it still runs when somebody comes to look


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A CPU server that runs two processes at a time and cuts prompts small."""
    options = ("--device", "cpu", "--threads", "1", "--pool-mib", "64")
    with running_server(*options, "--max-running", "2", "--max-chunk-tokens", "16", gateway=False) as running:
        yield running


def driver_resources(server: Server) -> tuple[int, int]:
    """File descriptors and mappings of the driver's process."""
    with SyncClient(server.socket_path) as client:
        os_pid = client.devices()[0].driver_pid
    maps = Path(f"/proc/{os_pid}/maps").read_text().count("\n")
    return len(os.listdir(f"/proc/{os_pid}/fd")), maps


async def bring_into(client: Client, state: str) -> list[int]:
    """Spawn a process, and others in its way where needed, and bring it into a state; it is the last one."""
    pids: list[int] = []
    if state == "waiting":
        for _ in range(2):
            pids += (await client.spawn(PROMPT, max_tokens=LONG, ignore_eos=True)).pids
    options: SpawnOptions = {
        "max_tokens": 4 if state in ("input", "zombie") else LONG, "ignore_eos": True,
        "interactive": state == "input",
    }  # fmt: skip
    if state == "stopped":
        pid, _ = await in_the_middle(client, client.stop, PROMPT, **options)
        return [pid]
    if state == "forked":
        parent, forked = await in_the_middle(client, lambda pid: client.fork(pid, 3), PROMPT, **options)
        return [parent, *forked.pids]
    pids += (await client.spawn(PROMPT, **options)).pids
    if state == "decode":
        await client.read(pids[-1])
    if state in ("input", "zombie"):
        async for _ in client.stream(pids[-1]):
            pass
    return pids


@pytest.mark.parametrize("state", ["waiting", "prefill", "decode", "stopped", "forked", "input", "zombie"])
async def test_kill_gives_everything_back(server: Server, state: str) -> None:
    """Kill in each state: frames, processes, tasks and descriptors are back where they began."""
    before = count(server)
    async with open_client(server.socket_path) as client:
        for pid in reversed(await bring_into(client, state)):
            await client.kill(pid)
            assert (await client.stat(pid)).num_resident_bytes == 0
            await client.wait(pid)
        statistics = await client.statistics()
        assert statistics.num_free_frames + statistics.num_cached_frames == statistics.num_frames
    assert_no_leak(server, before)


@pytest.mark.parametrize("state", ["waiting", "prefill", "decode", "stopped", "forked", "input", "zombie"])
async def test_disconnect_gives_everything_back(server: Server, state: str) -> None:
    """A client that goes away in each state leaves nothing."""
    before = count(server)
    async with open_client(server.socket_path) as client:
        await bring_into(client, state)
    assert_no_leak(server, before)


async def test_the_driver_does_not_grow(server: Server) -> None:
    """Hundreds of lives later the driver holds no more descriptors, and its mappings are bounded."""
    rng = random.Random(3)

    async def churn(num_lives: int) -> None:
        async with open_client(server.socket_path) as client, trio.open_nursery() as nursery:

            async def one() -> None:
                length = rng.randrange(1, 200)
                spawned = await client.spawn(
                    PROMPT[:1] * length, max_tokens=rng.randrange(1, 6), auto_reap=True
                )
                async for _ in client.stream(spawned.pids[0]):
                    pass

            for _ in range(num_lives):
                nursery.start_soon(one)

    await churn(60)
    descriptors, maps = driver_resources(server)
    await churn(200)
    later = driver_resources(server)
    assert later[0] == descriptors
    assert later[1] < maps + 600  # at most one for each page of the few spaces, not one for each life


async def test_the_driver_tells_what_steps_waited_for(server: Server) -> None:
    """What a prompt needs is mapped in its step, the pages of an answer beside steps, ahead of need."""
    before = count(server)
    async with open_client(server.socket_path) as client:
        (first,) = await client.devices()
        (pid,) = (await client.spawn(range(300, 500), max_tokens=400, ignore_eos=True)).pids
        await client.wait(pid)
        (device,) = await client.devices()
        old, new = first.maps, device.maps
        assert old is not None
        assert new is not None
        assert new.num_sync > old.num_sync
        assert new.num_ahead > old.num_ahead
        assert new.num_waiting_steps - old.num_waiting_steps < (device.num_steps - first.num_steps) / 10
        assert new.wait_seconds + new.beside_seconds > 0
    assert_no_leak(server, before)
