"""What if a chat is saved, and the whole system is killed? A new one goes on with the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from llmos.bench.server import Server, running_server
from syscalls.client import Client, open_client
from syscalls.errno import Errno, SyscallError
from syscalls.sampling import Sampling
from syscalls.session import SpawnOptions
from tests.system.leaks import counted_server
from tests.system.middle import in_the_middle

OPTIONS = ("--device", "cpu", "--threads", "1", "--pool-mib", "64", "--weights", "bf16")
SEEDED = Sampling(temperature=0.8, seed=11)
NUM_LONG = 1700  # tokens: nearly a context
TURNS = [tuple(300 + (i * 7 + turn) % 150 for i in range(length)) for turn, length in enumerate((300, 40, 9))]


async def take_turn(client: Client, pid: int, offset: int) -> tuple[int, ...]:
    """Read a turn to its end."""
    tokens: list[int] = []
    async for output in client.stream(pid, offset):
        tokens += output.tokens
    return tuple(tokens)


async def read_tokens(client: Client, pid: int, num_tokens: int) -> tuple[int, ...]:
    """Read the first tokens of a process that goes on."""
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        tokens += (await client.read(pid, len(tokens))).tokens
    return tuple(tokens[:num_tokens])


async def spawn_chat(client: Client) -> tuple[int, tuple[int, ...]]:
    """A chat after its first turn."""
    (pid,) = (
        await client.spawn(
            TURNS[0], max_tokens=30, sampling=SEEDED, interactive=True, detached=True, ignore_eos=True
        )
    ).pids
    return pid, await take_turn(client, pid, 0)


async def save_running(client: Client) -> int:
    """Save a process under the name "running" while it decodes."""
    options: SpawnOptions = {"max_tokens": 400, "sampling": SEEDED, "detached": True, "ignore_eos": True}
    pid, _ = await in_the_middle(client, lambda pid: client.checkpoint(pid, "running"), TURNS[0], **options)
    return pid


async def go_on(client: Client, pid: int, first: int) -> list[tuple[int, ...]]:
    """Take the turns from `first` on; there were so many before."""
    outputs = []
    for turn in range(first, len(TURNS)):
        await client.write(pid, TURNS[turn], max_tokens=30)
        outputs.append(await take_turn(client, pid, 30 * turn))
    return outputs


async def end(client: Client, *pids: int) -> None:
    """Kill and reap."""
    for pid in pids:
        await client.kill(pid)
        await client.wait(pid)


def kill_whole_system(server: Server) -> None:
    """kill -9 of the kernel; its driver ends with it."""
    os.kill(server.os_pid, signal.SIGKILL)


@pytest.mark.parametrize("prefix_cache", ["--prefix-cache", "--no-prefix-cache"])
async def test_a_chat_outlives_the_system(tmp_path: Path, prefix_cache: str) -> None:
    """Saved, killed with everything, restored: the same bits as a chat that was never disturbed."""
    options = (*OPTIONS, prefix_cache, "--image-folder", str(tmp_path / "images"))
    with running_server(*options, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            pid, first = await spawn_chat(client)
            saved = await client.checkpoint(pid, "chat")
            assert (saved.num_tokens, saved.num_saved_tokens) == (330, 329)
            running = await save_running(client)
            expected = await go_on(client, pid, 1)
            expected_run = await take_turn(client, running, 0)
        kill_whole_system(server)
    with counted_server(*options, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            assert [(image.name, image.problem) for image in await client.images()] == [
                ("chat", ""),
                ("running", ""),
            ]
            num_computed = (await client.statistics()).num_prompt_tokens
            pids = [(await client.restore("chat")).pids[0] for _ in range(2)]
            for pid in pids:
                assert await take_turn(client, pid, 0) == first
                assert await go_on(client, pid, 1) == expected
            num_computed = (await client.statistics()).num_prompt_tokens - num_computed
            assert num_computed <= 2 * (len(TURNS[1]) + len(TURNS[2]) + 2)  # nothing of the first turn
            (running,) = (await client.restore("running")).pids
            assert await take_turn(client, running, 0) == expected_run
            await end(client, *pids)
            await client.wait(running)


async def test_a_damaged_page_and_another_format(tmp_path: Path) -> None:
    """A flipped bit in the frames costs a computation; a system with other weights refuses the image."""
    folder = tmp_path / "images"
    options = ("--image-folder", str(folder))
    with counted_server(*OPTIONS, *options, "--no-prefix-cache", gateway=False) as server:
        async with open_client(server.socket_path) as client:
            pid, _ = await spawn_chat(client)
            await client.checkpoint(pid, "chat")
            expected = await go_on(client, pid, 1)
            (path,) = folder.glob("*/chat")
            with path.open("r+b") as file:
                file.seek(5000)
                byte = file.read(1)[0]
                file.seek(5000)
                file.write(bytes([byte ^ 1]))
            (copy,) = (await client.restore("chat")).pids
            assert await go_on(client, copy, 1) == expected
            texts = [event.text for event in await client.events()]
            assert any("those tokens are computed again" in text for text in texts), texts
            await end(client, pid, copy)
    with running_server(*OPTIONS, "--weights", "fp32", *options, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            with pytest.raises(SyscallError, match="image chat was made with weights bf16") as caught:
                await client.restore("chat")
            assert caught.value.errno is Errno.ENOEXEC


async def test_two_devices(tmp_path: Path) -> None:
    """What one device saved the other goes on with."""
    options = ("--devices", "2", "--image-folder", str(tmp_path / "images"))
    with counted_server(*OPTIONS, *options, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            pid, first = await spawn_chat(client)
            await client.checkpoint(pid, "chat")
            pids = [pid, *[(await client.restore("chat")).pids[0] for _ in range(3)]]
            assert {(await client.stat(one)).device for one in pids} == {"cpu:0", "cpu:1"}
            outputs = [[await take_turn(client, one, 0), *await go_on(client, one, 1)] for one in pids]
            assert outputs[0][0] == first
            assert outputs == [outputs[0]] * 4
            await end(client, *pids)


async def test_many_checkpoints_while_all_run(tmp_path: Path) -> None:
    """Eight run, each is saved several times while it does; every image leads to the same tokens."""
    options = ("--no-prefix-cache", "--image-folder", str(tmp_path / "images"))
    with counted_server(*OPTIONS, *options, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            pids = []
            for seed in range(8):
                sampling = Sampling(temperature=0.8, seed=seed)
                pids += (
                    await client.spawn(
                        TURNS[0][seed:], max_tokens=NUM_LONG, sampling=sampling, ignore_eos=True
                    )
                ).pids
            names: dict[str, int] = {}

            async def save(pid: int) -> None:
                for number in range(3):
                    try:
                        await client.checkpoint(pid, f"{pid}-{number}")
                    except SyscallError as error:
                        if error.errno is not Errno.EBUSY:
                            raise
                        return  # a busy machine kept us until its end
                    names[f"{pid}-{number}"] = pid

            await client.read(pids[-1])
            async with trio.open_nursery() as nursery:
                for pid in pids:
                    nursery.start_soon(save, pid)
            saved = {image.name: image.num_tokens for image in await client.images()}
            assert saved.keys() == names.keys() != set()
            # of output: some that no image has
            num_tokens = min(max(saved.values()) - len(TURNS[0]) + 30, NUM_LONG)
            expected = {pid: await read_tokens(client, pid, num_tokens) for pid in pids}
            await end(client, *pids)

            async def check(name: str, pid: int) -> None:
                (copy,) = (await client.restore(name)).pids
                assert await read_tokens(client, copy, num_tokens) == expected[pid]
                await end(client, copy)

            async with trio.open_nursery() as nursery:
                for name, pid in names.items():
                    nursery.start_soon(check, name, pid)
