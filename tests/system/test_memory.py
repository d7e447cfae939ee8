"""What if memory, on the device and below it, is far too little, or lies? The bits are the same."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from llmos.bench.server import Server
from syscalls.client import Client, open_client
from syscalls.errno import Errno, SyscallError
from syscalls.sampling import Sampling
from syscalls.system import DeviceInfo
from tests.reading import finish
from tests.system.leaks import counted_server

# Pages of 16 tokens, two frames of 16 KiB each.
OPTIONS = ("--device", "cpu", "--threads", "1", "--frame-kib", "16", "--weights", "bf16", "--kv", "bf16")
PAGE = 16
SWAP = ("--preempt", "swap", "--swap-idle-seconds", "0.05", "--no-prefix-cache")
ON_DISK = (*OPTIONS, *SWAP, "--swap-mib", "0", "--swap-file-mib", "16")
NUM_CHATS = 4
NEXT_TURN = (301, 302, 303)


def prompt(number: int, length: int) -> tuple[int, ...]:
    """A prompt that nobody else has."""
    return tuple(300 + (number * 37 + i * (number + 1)) % 199 for i in range(length))


def sampling_of(number: int) -> Sampling:
    """Greedy and seeded in turn."""
    return Sampling(temperature=0.8, seed=number) if number % 2 else Sampling()


@pytest.fixture(scope="module")
def quiet() -> Iterator[Server]:
    """A server with more memory than anybody needs: what is emitted there is the truth."""
    with counted_server(*OPTIONS, "--no-prefix-cache", gateway=False) as server:
        yield server


async def read_turn(client: Client, pid: int, offset: int) -> tuple[int, ...]:
    """Output from an offset to the end of the turn."""
    tokens: list[int] = []
    async for output in client.stream(pid, offset):
        tokens += output.tokens
    return tuple(tokens)


async def device_of(client: Client) -> DeviceInfo:
    """The only one."""
    (device,) = await client.devices()
    return device


async def until(client: Client, holds: Callable[[DeviceInfo], bool]) -> DeviceInfo:
    """Wait for a state of the device."""
    while not holds(device := await device_of(client)):  # noqa: ASYNC110 - another process
        await trio.sleep(0.01)
    return device


async def begin_chats(client: Client, num_chats: int = NUM_CHATS) -> dict[int, tuple[int, ...]]:
    """Chats after their first turn; what each has emitted."""
    outputs = {}
    for number in range(num_chats):
        (pid,) = (
            await client.spawn(
                prompt(number, 90 + number),
                max_tokens=10,
                sampling=sampling_of(number),
                ignore_eos=True,
                interactive=True,
            )
        ).pids
        outputs[pid] = await read_turn(client, pid, 0)
    return outputs


async def go_on(client: Client, pids: list[int], offset: int = 10) -> list[tuple[int, ...]]:
    """Another turn of each, one after the other."""
    outputs = []
    for pid in pids:
        await client.write(pid, NEXT_TURN, max_tokens=10)
        outputs.append(await read_turn(client, pid, offset))
    return outputs


async def end(client: Client, pids: list[int]) -> None:
    """Kill and reap."""
    for pid in pids:
        await client.kill(pid)
        await client.wait(pid)


async def expect_turns(quiet: Server, num_turns: int) -> list[list[tuple[int, ...]]]:
    """What the chats emit where nothing is ever swapped: the first turn, and so many more."""
    async with open_client(quiet.socket_path) as client:
        chats = await begin_chats(client)
        turns = [list(chats.values())]
        for turn in range(num_turns):
            turns.append(await go_on(client, list(chats), 10 * (turn + 1)))
        await end(client, list(chats))
    return turns


def is_asleep_below(device: DeviceInfo) -> bool:
    """Has nobody memory on the device, and no copy been left under way?"""
    assert device.swap is not None
    return device.num_free_frames == device.num_frames and not device.swap.num_copies_in_flight


async def faults(client: Client) -> list[str]:
    """What an operator is told of pages that could not be copied or trusted."""
    return [event.text for event in await client.events() if event.subsystem == "swap"]


def find_swap_file(driver_pid: int | None, folder: Path) -> Path:
    """The swap file of a driver in a folder, where it has no name."""
    files = [path for path in Path(f"/proc/{driver_pid}/fd").iterdir() if str(folder) in os.readlink(path)]
    assert len(files) == 1
    return files[0]


async def test_sixty_four_children_of_a_long_parent(quiet: Server) -> None:
    """They take no memory until they diverge, then a page each; all go on as their parent would."""
    async with open_client(quiet.socket_path) as client:
        (parent,) = (
            await client.spawn(prompt(1, 1490), max_tokens=10, ignore_eos=True, interactive=True)
        ).pids
        first = await read_turn(client, parent, 0)
        before = await device_of(client)
        children = list((await client.fork(parent, 64)).pids)
        after = await device_of(client)
        assert after.num_free_frames == before.num_free_frames
        (memory,) = await client.meminfo()
        mapped = {each.pid: each.private + each.shared for each in memory.processes}
        assert set(mapped) == {parent, *children}
        assert set(mapped.values()) == {94 * PAGE * 2048}  # each maps all of it; 2 KiB a token
        outputs = await go_on(client, [*children, parent])
        assert outputs == [outputs[0]] * 65
        assert {await read_turn(client, child, 0) for child in children} == {first + outputs[0]}
        diverged = await device_of(client)
        # the page that they part in, and the one behind it; the last to write there has the page itself
        assert before.num_free_frames - diverged.num_free_frames <= 65 * 2 * 2 - 2
        await end(client, [*children, parent])


async def test_a_hundred_in_memory_for_ten(quiet: Server) -> None:
    """And tiers below that hold a few of them: all hundred finish, as if each were alone."""

    async def spawn(client: Client, number: int) -> int:
        spawned = await client.spawn(
            prompt(number, 50 + number % 40), max_tokens=30, sampling=sampling_of(number), ignore_eos=True
        )
        return spawned.pids[0]

    async with open_client(quiet.socket_path) as client:
        expected = [await finish(client, await spawn(client, number)) for number in range(100)]
    changing = ("--policy", "rerank", "--rerank-steps", "7", "--max-running", "100")
    little = ("--pool-mib", "2", "--swap-mib", "1", "--swap-file-mib", "1")
    with counted_server(*OPTIONS, *SWAP, *changing, *little, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            pids = [await spawn(client, number) for number in range(100)]
            assert [await finish(client, pid) for pid in pids] == expected
            device = await device_of(client)
    assert device.num_preemptions > 0
    assert device.swap is not None
    assert all(tier.num_bytes_out and tier.num_bytes_in for tier in device.swap.tiers)
    assert all(tier.num_free_bytes == tier.num_bytes for tier in device.swap.tiers)


async def test_a_full_disk(quiet: Server) -> None:
    """What finds no room is named and computed again; when there is room again, it is used."""
    expected = await expect_turns(quiet, 2)
    with counted_server(*ON_DISK, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            driver = (await device_of(client)).driver_pid
            assert driver is not None
            soft, hard = resource.prlimit(driver, resource.RLIMIT_FSIZE)
            resource.prlimit(driver, resource.RLIMIT_FSIZE, (50_000, hard))  # in the fourth frame
            chats = await begin_chats(client)
            assert list(chats.values()) == expected[0]
            device = await until(client, is_asleep_below)
            assert device.swap is not None
            num_faulty = device.swap.num_faulty_pages
            assert num_faulty > 0
            assert any("File too large" in text for text in await faults(client))
            resource.prlimit(driver, resource.RLIMIT_FSIZE, (soft, hard))
            num_computed = (await client.statistics()).num_prompt_tokens
            assert await go_on(client, list(chats)) == expected[1]
            num_computed = (await client.statistics()).num_prompt_tokens - num_computed
            assert num_computed > NUM_CHATS * (PAGE + len(NEXT_TURN))  # of all, not only what was said now
            device = await until(client, is_asleep_below)
            assert device.swap is not None
            assert device.swap.num_faulty_pages == num_faulty
            num_bytes_in = device.swap.tiers[1].num_bytes_in
            assert await go_on(client, list(chats), 20) == expected[2]
            device = await device_of(client)
            assert device.swap is not None
            assert device.swap.tiers[1].num_bytes_in - num_bytes_in >= NUM_CHATS * 7 * PAGE * 2048
            await end(client, list(chats))


@pytest.mark.parametrize("damage", ["a bit", "the end"])
async def test_a_swap_file_that_lies(quiet: Server, tmp_path: Path, damage: str) -> None:
    """A flipped bit in each frame, or nothing where there were frames: named, and never served."""
    expected = await expect_turns(quiet, 1)
    with counted_server(*ON_DISK, "--swap-folder", str(tmp_path), gateway=False) as server:
        async with open_client(server.socket_path) as client:
            chats = await begin_chats(client)
            assert list(chats.values()) == expected[0]
            device = await until(client, is_asleep_below)
            with find_swap_file(device.driver_pid, tmp_path).open("r+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                assert size >= NUM_CHATS * 6 * PAGE * 2048
                if damage == "the end":
                    file.truncate(0)
                for number, at in enumerate(range(0, size if damage == "a bit" else 0, device.frame_bytes)):
                    place = at + number * 211 % device.frame_bytes
                    file.seek(place)
                    (byte,) = file.read(1)
                    file.seek(place)
                    file.write(bytes([byte ^ 1 << number % 8]))
            assert await go_on(client, list(chats)) == expected[1]
            why = "its checksum is not what it should be" if damage == "a bit" else "the file ends before it"
            assert any(why in text for text in await faults(client))
            device = await device_of(client)
            assert device.swap is not None
            assert (
                device.swap.num_faulty_pages >= NUM_CHATS
            )  # whatever is behind the first is computed anyway
            await end(client, list(chats))


async def hold_a_copy_out(client: Client, chats: list[int]) -> tuple[int, int]:
    """Take turns of the chats until the driver stands still with copies of all of them under way.

    Returns:
        The driver, stopped, and how many turns there were.
    """
    num_turns = 0
    while True:
        driver = (await device_of(client)).driver_pid
        assert driver is not None
        os.kill(driver, signal.SIGSTOP)
        # either it was in time, and copies wait for it, or there is nothing left to be copied
        device = await until(client, lambda device: not device.num_running and has_left(device, len(chats)))
        if device.swap is not None and device.swap.num_copies_in_flight == len(chats):
            return driver, num_turns
        os.kill(driver, signal.SIGCONT)
        num_turns += 1
        await go_on(client, chats, 10 * num_turns)


def has_left(device: DeviceInfo, num_chats: int) -> bool:
    """Are copies of so many on their way, or is the device empty?"""
    assert device.swap is not None
    return device.swap.num_copies_in_flight == num_chats or is_asleep_below(device)


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("is_killed", [False, True])
async def test_written_to_while_it_is_swapped_out(quiet: Server, tier: str, is_killed: bool) -> None:
    """Chats are on their way down when their next turn comes, and the driver may end in those copies."""
    tiers = ON_DISK if tier == "disk" else (*OPTIONS, *SWAP, "--swap-mib", "16")
    with counted_server(*tiers, "--swap-idle-seconds", "0.5", gateway=False) as server:
        async with open_client(server.socket_path) as client:
            chats = await begin_chats(client)
            driver, num_turns = await hold_a_copy_out(client, list(chats))
            for pid in chats:
                await client.write(pid, NEXT_TURN, max_tokens=10)
            os.kill(driver, signal.SIGKILL if is_killed else signal.SIGCONT)
            outputs = [await read_turn(client, pid, 10 * (num_turns + 1)) for pid in chats]
            device = await device_of(client)
            assert device.num_restarts == is_killed
            assert device.swap is not None
            (used,) = (each for each in device.swap.tiers if each.name == tier)
            assert used.num_bytes_in == 0 or num_turns  # what had not left the device was not fetched
            await end(client, list(chats))
    assert outputs == (await expect_turns(quiet, num_turns + 1))[-1]


async def test_an_image_that_the_disk_cannot_hold(quiet: Server, tmp_path: Path) -> None:
    """Refused by name, nothing is left of it, and the image that was to be replaced is as it was."""
    expected = await expect_turns(quiet, 1)
    folder = tmp_path / "images"
    with counted_server(*OPTIONS, "--image-folder", str(folder), gateway=False) as server:
        async with open_client(server.socket_path) as client:
            chats = await begin_chats(client)
            chat = next(iter(chats))
            await client.checkpoint(chat, "chat")
            files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            driver = (await device_of(client)).driver_pid
            assert driver is not None
            soft, hard = resource.prlimit(driver, resource.RLIMIT_FSIZE)
            resource.prlimit(driver, resource.RLIMIT_FSIZE, (50_000, hard))
            for name in ("chat", "another"):
                with pytest.raises(SyscallError, match="File too large") as caught:
                    await client.checkpoint(chat, name, overwrite=True)
                assert caught.value.errno is Errno.EIO
            resource.prlimit(driver, resource.RLIMIT_FSIZE, (soft, hard))
            assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
            (copy,) = (await client.restore("chat")).pids
            assert await go_on(client, [copy, *chats]) == [expected[1][0], *expected[1]]
            await end(client, [copy, *chats])
