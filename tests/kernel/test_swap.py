"""Processes on lower tiers of memory: swapped out, swapped in, and never any the wiser."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver, SimFaults
from llmos.cost import CopyCost
from llmos.mm.swap import SwapStatistics
from llmos.proc.lifecycle import ProcState
from syscalls.client import Client
from syscalls.errno import Errno, SyscallError
from tests.kernel.harness import MODEL, RunningKernel, running_kernel
from tests.reading import finish

PAGE = 16  # tokens
PAGE_BYTES = 512


def prompt(number: int, length: int) -> tuple[int, ...]:
    """A prompt that nobody else has."""
    return tuple((number * 37 + i) % 500 for i in range(length))


async def read_turn(client: Client, pid: int, offset: int) -> tuple[int, ...]:
    """Read output from `offset` to the end of the turn."""
    tokens: list[int] = []
    while True:
        output = await client.read(pid, offset + len(tokens))
        tokens += output.tokens
        if output.end is not None:
            return tuple(tokens)


def swap_of(kernel: RunningKernel) -> SwapStatistics:
    """What the only device's tiers say."""
    (core,) = kernel.system.cores.values()
    statistics = core.statistics().swap
    assert statistics is not None
    return statistics


async def test_a_hundred_finish_in_memory_for_ten(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Memory for ten, a hundred admitted: all finish with their own tokens, and some were swapped."""
    make = partial(SimDriver, num_frames=10 * 2 * 5, host_cost=CopyCost(1e-5, 1e6))
    async with running_kernel(tmp_path, make, swap_mib=1, preempt="swap", prefix_cache=False) as kernel:
        pids = []
        for number in range(100):
            spawned = await kernel.client.spawn(prompt(number, 20 + number % 30), max_tokens=30)
            pids += spawned.pids
        for number, pid in enumerate(pids):
            expected = MODEL.expected_tokens(prompt(number, 20 + number % 30), 30)
            assert await finish(kernel.client, pid) == expected
        (core,) = kernel.system.cores.values()
        assert core.statistics().num_preemptions > 0
        assert swap_of(kernel).tiers["host"].num_bytes_out > 0
        assert swap_of(kernel).tiers["host"].num_bytes_in > 0


async def chat(client: Client, number: int, turns: int) -> None:
    """Hold a conversation with pauses, and check every token of it."""
    (pid,) = (await client.spawn(prompt(number, 40), max_tokens=10, interactive=True, detached=True)).pids
    history = prompt(number, 40)
    offset = 0
    for turn in range(turns):
        tokens = await read_turn(client, pid, offset)
        offset += len(tokens)
        history += MODEL.expected_tokens(history, 10)
        assert tokens == history[-10:]
        await trio.sleep(60)
        if turn < turns - 1:
            more = prompt(number + 100 + turn, 7)
            history += more
            await client.write(pid, more, max_tokens=10)
    await client.kill(pid)
    await client.wait(pid)


@pytest.mark.parametrize("preempt", ["swap", "auto"])
async def test_an_idle_chat_is_swapped_out_and_comes_back(
    tmp_path: Path, autojump_clock: trio.abc.Clock, preempt: str
) -> None:
    """Its memory goes while its person thinks; the next turn brings it back, and only new pages went down.

    Nobody waits for it to go, so that even a short tail is copied: nothing is computed again for haste.
    """
    async with running_kernel(
        tmp_path, swap_mib=1, swap_idle_seconds=20, prefix_cache=False, preempt=preempt
    ) as kernel:
        (core,) = kernel.system.cores.values()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat, kernel.client, 1, 3)
            await trio.sleep(50)
            (process,) = kernel.system.table
            assert (process.state, process.space) == (ProcState.BLOCKED, None)
            assert core.statistics().memory.num_free == 1024
            first = swap_of(kernel).tiers["host"]
            assert (first.num_bytes_out, first.num_bytes_in) == (4 * PAGE_BYTES, 0)  # 49 tokens
            await trio.sleep(60)
            second = swap_of(kernel).tiers["host"]
            assert second.num_bytes_in == 4 * PAGE_BYTES
            assert (
                second.num_bytes_out == first.num_bytes_out + 2 * PAGE_BYTES
            )  # 66: the last page and one more
        assert swap_of(kernel).tiers["host"].num_free == swap_of(kernel).tiers["host"].num_slots


async def test_a_flipped_bit_on_disk_is_named_and_computed_again(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """The checksum tells, an event names the slot, and the tokens are right."""
    async with running_kernel(
        tmp_path, swap_file_mib=1, swap_idle_seconds=20, prefix_cache=False, preempt="swap"
    ) as kernel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat, kernel.client, 1, 2)
            await trio.sleep(50)
            contents = kernel.sim.tiers.contents
            assert len(contents) == 8
            contents["disk", 2] = contents["disk", 2][:-1] + bytes([contents["disk", 2][-1] ^ 1])
        events = kernel.system.events.since(0, 100)
        assert any("disk slot 2 does not have its checksum" in event.text for event in events)
        assert swap_of(kernel).num_faults == 1


async def test_what_cannot_be_written_is_computed_again(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A copy out that fails costs its pages, nothing else."""
    make = partial(SimDriver, faults=SimFaults(faulty_copies=frozenset({1})))
    async with running_kernel(
        tmp_path, make, swap_mib=1, swap_idle_seconds=20, prefix_cache=False, preempt="swap"
    ) as kernel:
        await chat(kernel.client, 1, 3)
        assert swap_of(kernel).num_faults == 1


async def test_the_host_area_overflows_to_disk(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Twelve idle chats, room for eight in the host area: who was idle first goes on to the swap file."""
    make = partial(SimDriver, max_slots=64)
    async with (
        running_kernel(
            tmp_path,
            make,
            swap_mib=1,
            swap_file_mib=1,
            swap_idle_seconds=20,
            prefix_cache=False,
            preempt="swap",
        ) as kernel,
        trio.open_nursery() as nursery,
    ):
        for number in range(12):
            nursery.start_soon(chat, kernel.client, number, 3)
        await trio.sleep(50)
        tiers = swap_of(kernel).tiers
        assert tiers["host"].num_free * 8 >= tiers["host"].num_slots
        assert (tiers["host"].num_slots - tiers["host"].num_free) + (
            tiers["disk"].num_slots - tiers["disk"].num_free
        ) == 12 * 4 * 2
        assert all(process.space is None for process in kernel.system.table)


async def test_a_full_disk_costs_the_host_area_nothing(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """What cannot go on to the swap file stays where it is; the disk is tried again now and then."""
    make = partial(SimDriver, max_slots=64, faults=SimFaults(full_tiers=frozenset({"disk"})))
    async with (
        running_kernel(
            tmp_path,
            make,
            swap_mib=1,
            swap_file_mib=1,
            swap_idle_seconds=20,
            prefix_cache=False,
            preempt="swap",
        ) as kernel,
        trio.open_nursery() as nursery,
    ):
        for number in range(12):
            nursery.start_soon(chat, kernel.client, number, 3)
        await trio.sleep(50)
        tiers = swap_of(kernel).tiers
        assert (tiers["host"].num_free, tiers["disk"].num_free) == (0, 64)  # eight chats, of 4 pages each
        assert tiers["host"].num_bytes_in == 0
        await trio.sleep(30)  # all are at their second turn
        assert swap_of(kernel).tiers["host"].num_bytes_in == 8 * 4 * PAGE_BYTES
        told = [event.text for event in kernel.system.events.since(0, 1000) if event.subsystem == "swap"]
        assert any("what was not bad stays in the host area" in text for text in told)
        assert len(told) < 12
        kernel.sim.faults = SimFaults()
        await trio.sleep(45)
        tiers = swap_of(kernel).tiers
        assert tiers["host"].num_free * 8 >= tiers["host"].num_slots
        assert tiers["disk"].num_free < tiers["disk"].num_slots


async def test_an_idle_chat_stays_where_there_is_no_room_below(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Room for one: the other two keep their memory while nobody else wants it."""
    make = partial(SimDriver, max_slots=8)
    async with (
        running_kernel(
            tmp_path, make, swap_mib=1, swap_idle_seconds=20, prefix_cache=False, preempt="swap"
        ) as kernel,
        trio.open_nursery() as nursery,
    ):
        for number in range(3):
            nursery.start_soon(chat, kernel.client, number, 2)
        await trio.sleep(50)
        assert sorted(process.space is None for process in kernel.system.table) == [False, False, True]
        num_computed = (await kernel.client.statistics()).num_prompt_tokens
        await trio.sleep(20)
        num_computed = (await kernel.client.statistics()).num_prompt_tokens - num_computed
        assert num_computed == 3 * (7 + 1)  # of each the turn, and what was emitted last


async def test_cheap_prompts_are_computed_again(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """With a slow copier it is cheaper to compute: nothing is copied."""
    make = partial(SimDriver, num_frames=16, host_cost=CopyCost(1.0, 1e3))
    async with running_kernel(tmp_path, make, swap_mib=1, prefix_cache=False) as kernel:
        pids = [(await kernel.client.spawn(prompt(n, 50), max_tokens=40)).pids[0] for n in range(4)]
        for number, pid in enumerate(pids):
            assert await finish(kernel.client, pid) == MODEL.expected_tokens(prompt(number, 50), 40)
        (core,) = kernel.system.cores.values()
        assert core.statistics().num_preemptions > 0
        assert kernel.sim.statistics().num_copies == 0


async def test_a_driver_that_dies_takes_the_tiers_with_it(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """What was swapped out is computed again, and nobody notices."""
    async with (
        running_kernel(
            tmp_path, swap_mib=1, swap_idle_seconds=20, prefix_cache=False, preempt="swap"
        ) as kernel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(chat, kernel.client, 1, 2)
        await trio.sleep(50)
        kernel.sim.kill()


async def test_who_no_longer_fits_is_killed_with_a_reason(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A device comes back with a quarter of its memory: the long process is killed, the short one goes on."""
    sizes = iter([64, 16])

    def make(name: str) -> SimDriver:
        return SimDriver(name=name, num_frames=next(sizes))

    async with running_kernel(tmp_path, make) as kernel:
        (long,) = (await kernel.client.spawn(prompt(1, 200), max_tokens=200)).pids
        (short,) = (await kernel.client.spawn(prompt(2, 40), max_tokens=60)).pids
        await trio.sleep(0.1)
        kernel.sim.kill()
        assert await finish(kernel.client, short) == MODEL.expected_tokens(prompt(2, 40), 60)
        waited = await kernel.client.wait(long)
        assert waited.status.reason == "error"
        assert "out of memory" in waited.status.message
        assert "16 in all" in waited.status.message
        oom = [event for event in kernel.system.events.since(0, 100) if event.subsystem == "oom"]
        assert [f"pid {long}" in event.text for event in oom] == [True]


async def test_a_turn_that_could_never_fit_is_refused(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A write is held to the device's memory, as a spawn is; without a number, output is what it allows."""
    make = partial(SimDriver, num_frames=8)  # 64 tokens
    async with running_kernel(tmp_path, make) as kernel:
        client = kernel.client
        with pytest.raises(SyscallError, match="8 in all") as refused:
            await client.spawn(prompt(1, 40), max_tokens=30)
        assert refused.value.errno is Errno.ENOMEM
        (pid,) = (await client.spawn(prompt(1, 20), max_tokens=5, interactive=True)).pids
        assert len(await read_turn(client, pid, 0)) == 5
        with pytest.raises(SyscallError, match="hold 64") as refused:
            await client.write(pid, prompt(2, 20), max_tokens=30)
        assert refused.value.errno is Errno.ENOMEM
        await client.write(pid, prompt(2, 20))
        assert len(await read_turn(client, pid, 5)) == 64 - 45
        await client.kill(pid)
        await client.wait(pid)
