"""What if one that follows a grammar is saved, moved, or loses its driver in the middle? It cannot tell."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from llmos.bench.grammar import long_rules
from llmos.bench.server import Server, running_server
from syscalls.client import Client, open_client
from syscalls.errno import Errno, SyscallError
from syscalls.sampling import Sampling
from syscalls.text.grammar import json_grammar
from tests.reading import read_all
from tests.system.leaks import counted_server
from tests.system.middle import in_the_middle
from tests.system.test_preempted_forms import SCHEMA

OPTIONS = ("--device", "cpu", "--threads", "1", "--frame-kib", "16", "--weights", "bf16", "--kv", "bf16")
PROMPT = tuple(300 + 7 * i % 150 for i in range(90))
NESTED = 'start: item+\nitem: "(" item* ")" | /[a-z ]/'
SAMPLINGS = [
    Sampling(temperature=0.9, seed=1, grammar=json_grammar(SCHEMA)),
    Sampling(temperature=1.0, seed=2, grammar="start: /([0-9]{2}:[0-9]{2}, ){40}end/"),
    Sampling(grammar=NESTED),
    Sampling(temperature=1.0, seed=4, repetition_penalty=1.1, grammar=NESTED),
]
NUM_TOKENS = 120
NUM_SHORT = 5
COMPILES = "for the device to compile its grammar"
MIDDLE = 10  # tokens, of an output that is much longer


async def spawn_all(client: Client, *, stops: bool) -> list[int]:
    """One process of each kind, in the middle of its output: stopped there, or on its way."""
    return [await spawn_one(client, sampling, stops=stops) for sampling in SAMPLINGS]


async def spawn_one(client: Client, sampling: Sampling, *, stops: bool) -> int:
    """A process in the middle of its output."""
    act = client.stop if stops else go_on
    pid, _ = await in_the_middle(
        client, act, PROMPT, num_tokens=MIDDLE, max_tokens=NUM_TOKENS, sampling=sampling
    )
    return pid


async def go_on(pid: int) -> None:
    """Let a process do what it does."""


async def finish(client: Client, pids: list[int]) -> list[tuple[int, ...]]:
    """Read all to the end, and reap them."""
    outputs = []
    for pid in pids:
        tokens, end = await read_all(client, pid)
        assert end.reason in ("stop", "length"), end
        outputs.append(tokens)
        await client.wait(pid)
    return outputs


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all; ends with the leak count."""
    with counted_server(*OPTIONS, "--no-prefix-cache") as running:
        yield running


@pytest.fixture(scope="module")
def quiet(server: Server) -> list[tuple[int, ...]]:
    """Each alone: the truth."""

    async def one_after_the_other() -> list[tuple[int, ...]]:
        async with open_client(server.socket_path) as client:
            found = []
            for sampling in SAMPLINGS:
                pids = (await client.spawn(PROMPT, max_tokens=NUM_TOKENS, sampling=sampling)).pids
                found += await finish(client, list(pids))
            return found

    outputs = trio.run(one_after_the_other)
    assert min(map(len, outputs)) > MIDDLE + 30
    return outputs


async def test_saved_in_the_middle_and_restored_elsewhere(
    quiet: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """The system that saved them is gone; the new one has two devices, which never saw the grammars."""
    images = ("--image-folder", str(tmp_path))
    with running_server(*OPTIONS, *images, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            pids = await spawn_all(client, stops=True)
            for number, pid in enumerate(pids):
                await client.checkpoint(pid, f"image-{number}")
                await client.kill(pid)
                await client.wait(pid)
    with counted_server(*OPTIONS, *images, "--devices", "2", "--pool-mib", "64", gateway=False) as server:
        async with open_client(server.socket_path) as client:
            restored: dict[int, int] = {}

            async def restore(number: int) -> None:
                (restored[number],) = (await client.restore(f"image-{number}")).pids

            async with trio.open_nursery() as nursery:  # together: none has ended when the last one comes
                for number in range(len(SAMPLINGS)):
                    nursery.start_soon(restore, number)
            pids = [pid for _, pid in sorted(restored.items())]
            devices = {(await client.stat(pid)).device for pid in pids}
            assert await finish(client, pids) == quiet
            assert len(devices) == 2


async def test_the_driver_is_killed_in_the_middle(server: Server, quiet: list[tuple[int, ...]]) -> None:
    """The next driver compiles the grammars again, and follows them from where the outputs are."""
    async with open_client(server.socket_path) as client:
        pids = await spawn_all(client, stops=False)
        (device,) = await client.devices()
        assert device.driver_pid is not None
        os.kill(device.driver_pid, signal.SIGKILL)
        assert await finish(client, pids) == quiet
        with trio.fail_after(60):  # all may have ended before it was killed
            while (await client.devices())[0].num_restarts == device.num_restarts:  # noqa: ASYNC110
                await trio.sleep(0.01)
        (again,) = await client.devices()
        assert again.num_restarts == device.num_restarts + 1


async def test_forked_stopped_and_continued_in_the_middle(
    server: Server, quiet: list[tuple[int, ...]]
) -> None:
    """Children go on in the grammar where their parents are."""
    async with open_client(server.socket_path) as client:
        pids = await spawn_all(client, stops=True)
        children = [(await client.fork(pid, 1)).pids[0] for pid in pids]
        for pid in pids:
            await client.cont(pid)
        assert await finish(client, pids) == quiet
        assert await finish(client, children) == quiet


async def test_neighbours_of_a_long_grammar(server: Server) -> None:
    """While it is compiled its process is BLOCKED(Grammar), and others get their tokens."""
    async with open_client(server.socket_path) as client:
        for number in range(20):  # a busy machine may let us look only when a grammar has been compiled
            verdicts, num_tokens = await watch_neighbour(client, number)
            if num_tokens > 2 * NUM_SHORT and any(COMPILES in verdict for verdict in verdicts):
                return
    pytest.fail("no neighbour was seen to get tokens meanwhile")


async def watch_neighbour(client: Client, number: int) -> tuple[list[str], int]:
    """Have a grammar compiled beside a process. Returns what `why` said, and how many tokens were output."""
    (neighbour,) = (await client.spawn(PROMPT, max_tokens=1900, ignore_eos=True)).pids
    await client.read(neighbour)
    sampling = Sampling(temperature=1.0, seed=1, grammar=long_rules(number, 8000))
    (pid,) = (await client.spawn(PROMPT, max_tokens=NUM_SHORT, sampling=sampling)).pids
    before = (await client.statistics()).num_output_tokens
    verdicts, num_tokens = [], 0
    while (await client.stat(pid)).state == "BLOCKED(Grammar)":
        verdicts.append((await client.why(pid)).verdict)
        num_tokens = (await client.statistics()).num_output_tokens - before
        if (await client.stat(neighbour)).state == "ZOMBIE":
            await client.wait(neighbour)
            (neighbour,) = (await client.spawn(PROMPT, max_tokens=1900, ignore_eos=True)).pids
        await trio.sleep(0.005)
    await finish(client, [pid])
    await client.kill(neighbour)
    await client.wait(neighbour)
    return verdicts, num_tokens


def deep_rules(length: int) -> str:
    """Rules that refer to each other in a row: the library walks them by recursion."""
    return "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(length)), f'r{length}: "z" | /[0-9]+/'])


async def test_grammars_that_would_end_their_readers(server: Server) -> None:
    """Gateway, kernel and driver live on; the text is refused by name, or followed."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    deepest = deep_rules(60_000)
    async with open_client(server.socket_path) as client, httpx.AsyncClient(timeout=60) as web:
        (device,) = await client.devices()
        url = f"{server.url}/v1/chat/completions"
        answer = await web.post(url, json={**body, "guided_grammar": deepest})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "invalid_grammar"
        assert "nested too deeply" in error["message"]
        with pytest.raises(SyscallError, match="nested too deeply") as refused:
            await client.spawn(PROMPT, max_tokens=4, sampling=Sampling(grammar=deepest))
        assert refused.value.errno is Errno.EINVAL
        answer = await web.post(url, json={**body, "guided_grammar": deep_rules(8000)})
        assert answer.status_code == 200, answer.text
        dear = Sampling(grammar=f'start: "{"abc " * 200_000}"')
        (pid,) = (await client.spawn(PROMPT, max_tokens=4, sampling=dear)).pids
        status = (await client.wait(pid)).status
        assert "s for each token; the limit is 0.05 s" in status.message
        (same,) = await client.devices()
        assert same.driver_pid == device.driver_pid
