"""What if a process is batched, chunked, forked, shares a prefix, or its driver is killed? It cannot tell."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache

import attrs
import pytest
import trio

from llmos.bench.server import Server, running_server
from syscalls.client import Client, open_client
from syscalls.errno import Errno, SyscallError
from syscalls.sampling import Sampling
from tests.reading import finish
from tests.system.leaks import assert_no_leak, count, counted_server
from tests.system.middle import in_the_middle

NUM_REQUESTS = 32
# Small frames: many pages for each process, and memory that runs out often. Keys are split at page borders,
# so the frame size belongs to the kind of a device: every server here has the same.
MODEL_OPTIONS = ("--device", "cpu", "--threads", "1", "--frame-kib", "16")
# Its state grows with the output.
NESTED = 'start: item+\nitem: "(" item* ")" | /[a-z ]/'
FORMATS = [("bf16", "bf16"), ("w8a8", "int8"), ("w4a8", "fp16")]  # of weights, of keys and values
MORE_FORMATS = [("fp32", "fp32"), ("fp16", "fp16"), ("w8a8", "fp16"), ("w4a8", "int8")]


@attrs.frozen
class Request:
    """One process to run."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling


@cache
def requests() -> list[Request]:
    """A fixed mix: lengths from 1 to 400 tokens; greedy, seeded, biased, bound; some share a prefix."""
    rng = random.Random(7)
    shared = tuple(rng.randrange(300, 500) for _ in range(150))
    mixed = []
    for i in range(NUM_REQUESTS):
        length = rng.choice([1, 2, 15, 16, 17, 63, 64, 65, 130, 400])
        prompt = tuple(rng.randrange(300, 500) for _ in range(length))
        if i % 4 == 0:
            prompt = shared + prompt[:50]
        sampling = [
            Sampling(),
            Sampling(temperature=0.8, seed=i),
            Sampling(temperature=1.0, seed=i, top_p=0.9, top_k=40, min_p=0.01),
            Sampling(temperature=0.7, seed=i, repetition_penalty=1.2, frequency_penalty=0.5),
            Sampling(presence_penalty=1.0, logit_bias={300: 5.0, 301: -100.0}),
            Sampling(temperature=1.0, seed=i, grammar=NESTED),
        ][i % 6]
        mixed.append(Request(prompt, rng.choice([1, 8, 40]), sampling))
    return mixed


async def run_one(client: Client, request: Request) -> tuple[int, ...]:
    """Spawn one process and read it to the end."""
    spawned = await client.spawn(
        request.prompt,
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        ignore_eos=True,
        auto_reap=True,
    )
    tokens: list[int] = []
    async for output in client.stream(spawned.pids[0]):
        tokens += output.tokens
        end = output.end
    assert end is not None
    assert end.reason == "length", end
    return tuple(tokens)


async def run_together(server: Server) -> list[tuple[int, ...]]:
    """All requests at once, spawned in a random order."""
    results: dict[int, tuple[int, ...]] = {}
    async with open_client(server.socket_path) as client, trio.open_nursery() as nursery:

        async def one(i: int) -> None:
            results[i] = await run_one(client, requests()[i])

        order = list(range(NUM_REQUESTS))
        random.shuffle(order)
        for i in order:
            nursery.start_soon(one, i)
    return [results[i] for i in range(NUM_REQUESTS)]


@pytest.fixture(
    scope="module",
    params=FORMATS + [pytest.param(formats, marks=pytest.mark.slow) for formats in MORE_FORMATS],
    ids="-".join,
)
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Of every server of one round: the formats are the truth's, too."""
    weights, kv = request.param
    return (*MODEL_OPTIONS, "--weights", weights, "--kv", kv)


@pytest.fixture(scope="module")
def server(options: tuple[str, ...]) -> Iterator[Server]:
    """One server for the tests that need nothing special; ends with the leak count."""
    with counted_server(*options, gateway=False) as running:
        yield running


@pytest.fixture(scope="module")
def quiet(options: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Each request alone on a quiet server that shares nothing: the truth."""

    async def one_after_the_other(server: Server) -> list[tuple[int, ...]]:
        async with open_client(server.socket_path) as client:
            return [await run_one(client, request) for request in requests()]

    with running_server(*options, "--no-prefix-cache", gateway=False) as server:
        return trio.run(one_after_the_other, server)


@pytest.mark.parametrize("chunk", ["1", "7", "64", "512"])
async def test_batched_and_chunked(
    options: tuple[str, ...], quiet: list[tuple[int, ...]], chunk: str
) -> None:
    """Thirty-two at once, prompts cut into chunks of 1, 7, 64 or whole, prefixes shared: the same bits."""
    with running_server(*options, "--max-chunk-tokens", chunk, gateway=False) as server:
        assert await run_together(server) == quiet
        if chunk == "512":
            assert await run_together(server) == quiet  # now over a warm prefix index
            async with open_client(server.socket_path) as client:
                assert (await client.statistics()).num_cached_tokens > 0


async def test_little_memory(options: tuple[str, ...], quiet: list[tuple[int, ...]]) -> None:
    """With memory for a few and changing priorities, processes are preempted and recompute: same bits."""
    changing = ("--policy", "rerank", "--rerank-steps", "7", "--preempt", "recompute")
    with running_server(*options, "--pool-mib", "2", *changing, gateway=False) as server:
        while not count(server).num_preemptions:  # one round nearly always has many
            assert await run_together(server) == quiet


@pytest.mark.parametrize("tier", ["host", "disk"])
async def test_swapped(
    options: tuple[str, ...], server: Server, quiet: list[tuple[int, ...]], tier: str
) -> None:
    """With memory for a few, processes go to lower tiers and back, chats in every pause: the same bits."""
    size = ("--swap-mib", "64") if tier == "host" else ("--swap-mib", "0", "--swap-file-mib", "64")
    swap = (*size, "--preempt", "swap", "--swap-idle-seconds", "0.05", "--no-prefix-cache")
    swap += ("--policy", "rerank", "--rerank-steps", "7")
    with running_server(*options, "--pool-mib", "2", *swap, gateway=False) as swapping:
        before = count(swapping)
        assert await run_together(swapping) == quiet
        while not await num_copies_beside_steps(swapping):  # one round nearly always has some
            assert await run_together(swapping) == quiet
        assert await chat(swapping, is_swapped=True) == await chat(server, is_swapped=False)
        assert_no_leak(swapping, before)
        async with open_client(swapping.socket_path) as client:
            (device,) = await client.devices()
    assert device.swap is not None
    assert device.swap.num_faulty_pages == 0
    (used,) = (each for each in device.swap.tiers if each.name == tier)
    assert min(used.num_bytes_out, used.num_bytes_in) >= 4 * 2 * device.frame_bytes
    assert used.num_free_bytes == used.num_bytes


async def num_copies_beside_steps(server: Server) -> int:
    """Copies that ended before a step that was sent before them, on the only device."""
    async with open_client(server.socket_path) as client:
        (device,) = await client.devices()
    assert device.swap is not None
    return device.swap.num_copies_beside_steps


@asynccontextmanager
async def nothing_happens(client: Client) -> AsyncIterator[None]:
    """What is around the second turn of a chat, mostly."""
    yield


@asynccontextmanager
async def driver_killed_in_a_copy(client: Client) -> AsyncIterator[None]:
    """The driver answers nothing any more when the turn begins, and ends with a copy under way; once."""
    (device,) = await client.devices()
    if device.num_restarts:
        yield
        return
    assert device.driver_pid is not None
    os.kill(device.driver_pid, signal.SIGSTOP)
    yield
    while not (swap := (await client.devices())[0].swap) or not swap.num_copies_in_flight:  # noqa: ASYNC110
        await trio.sleep(0.01)
    os.kill(device.driver_pid, signal.SIGKILL)


async def chat(
    server: Server,
    *,
    is_swapped: bool,
    around_write: Callable[[Client], AbstractAsyncContextManager[None]] = nothing_happens,
) -> list[tuple[int, ...]]:
    """Four chats of two turns; in the pause between them they have no memory, or keep it."""
    outputs = []
    async with open_client(server.socket_path) as client:
        for request in [request for request in requests() if len(request.prompt) > 60][:4]:
            spawned = await client.spawn(
                request.prompt, max_tokens=10, sampling=request.sampling, ignore_eos=True, interactive=True
            )
            (pid,) = spawned.pids
            tokens: list[int] = []
            for turn in range(2):
                end = None
                while end is None:
                    output = await client.read(pid, len(tokens))
                    tokens += output.tokens
                    end = output.end
                while is_swapped and (await client.stat(pid)).num_resident_bytes:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                if turn == 0:
                    async with around_write(client):
                        await client.write(pid, (301, 302, 303), max_tokens=10)
            outputs.append(tuple(tokens))
            await client.kill(pid)
            await client.wait(pid)
    return outputs


async def check_forks(server: Server, quiet: list[tuple[int, ...]], chosen: Iterable[int]) -> None:
    """Children share frames with their parent, write to copies, and emit what it does."""
    async with open_client(server.socket_path) as client:
        for i in chosen:
            request = requests()[i]
            parent, forked = await in_the_middle(
                client,
                lambda pid: client.fork(pid, 2),
                request.prompt,
                max_tokens=40,
                sampling=request.sampling,
                ignore_eos=True,
            )
            for pid in (parent, *forked.pids):
                assert await finish(client, pid) == quiet[i]


async def test_forked(server: Server, quiet: list[tuple[int, ...]]) -> None:
    """A child forked in mid-flight emits what its parent does, greedy and seeded."""
    await check_forks(server, quiet, (i for i, r in enumerate(requests()) if r.max_tokens == 40))


async def test_stopped_and_continued(server: Server, quiet: list[tuple[int, ...]]) -> None:
    """Stopping and continuing processes at random moments changes nothing."""
    i = next(i for i, request in enumerate(requests()) if request.max_tokens == 40)
    request = requests()[i]
    async with open_client(server.socket_path) as client:
        (pid,) = (
            await client.spawn(request.prompt, max_tokens=40, sampling=request.sampling, ignore_eos=True)
        ).pids
        tokens: list[int] = []
        while True:
            output = await client.read(pid, len(tokens))
            tokens += output.tokens
            if output.end:
                break
            try:
                await client.stop(pid)
                await client.cont(pid)
            except SyscallError as error:  # it has just ended
                if error.errno is not Errno.EBUSY:
                    raise
        assert tuple(tokens) == quiet[i]
        await client.wait(pid)


async def test_driver_killed(options: tuple[str, ...], quiet: list[tuple[int, ...]]) -> None:
    """kill -9 of the driver in mid-flight: it is restarted, no process is lost, the same bits."""
    with running_server(*options, gateway=False) as server:
        async with trio.open_nursery() as nursery:

            async def assassin() -> None:
                async with open_client(server.socket_path) as client:
                    (device,) = await client.devices()
                    while (await client.statistics()).num_output_tokens < 20:  # noqa: ASYNC110 - another process
                        await trio.sleep(0.01)
                    assert device.driver_pid is not None
                    os.kill(device.driver_pid, signal.SIGKILL)

            nursery.start_soon(assassin)
            assert await run_together(server) == quiet
        async with open_client(server.socket_path) as client:
            with trio.fail_after(60):  # all may have ended before it was killed
                while not (await client.devices())[0].num_restarts:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            (device,) = await client.devices()
            assert device.num_restarts == 1


def is_alive(os_pid: int) -> bool:
    """Whether there is an operating-system process of this id."""
    return os.path.exists(f"/proc/{os_pid}")


async def test_slept(options: tuple[str, ...], quiet: list[tuple[int, ...]]) -> None:
    """All devices sleep twice in mid-flight, at last without their drivers: the same bits."""
    with running_server(*options, "--swap-mib", "64", "--preempt", "swap", gateway=False) as server:
        before = count(server)
        async with trio.open_nursery() as nursery:

            async def sandman() -> None:
                async with open_client(server.socket_path) as client:
                    for level, num_output in ((1, 20), (2, 100)):
                        while (await client.statistics()).num_output_tokens < num_output:  # noqa: ASYNC110
                            await trio.sleep(0.01)
                        (device,) = await client.devices()
                        assert device.driver_pid is not None
                        driver_pid = device.driver_pid
                        await client.sleep(level)
                        (device,) = await client.devices()
                        assert device.state == "sleeping"
                        assert device.driver_pid == (driver_pid if level == 1 else None)
                        assert device.num_free_frames == device.num_frames
                        assert (level == 2) == (not is_alive(driver_pid))
                        await client.wake()

            nursery.start_soon(sandman)
            assert await run_together(server) == quiet
        assert_no_leak(server, before)


async def test_driver_killed_in_a_copy(
    options: tuple[str, ...], server: Server, quiet: list[tuple[int, ...]]
) -> None:
    """kill -9 while memory is on its way back, beside others: it is computed again, the same bits."""
    swap = ("--swap-mib", "64", "--preempt", "swap", "--swap-idle-seconds", "0.05", "--no-prefix-cache")
    expected = await chat(server, is_swapped=False)
    with running_server(*options, *swap, gateway=False) as swapping:
        before = count(swapping)
        async with trio.open_nursery() as nursery:

            async def others() -> None:
                assert await run_together(swapping) == quiet

            nursery.start_soon(others)
            assert await chat(swapping, is_swapped=True, around_write=driver_killed_in_a_copy) == expected
        assert_no_leak(swapping, before)
        async with open_client(swapping.socket_path) as client:
            (device,) = await client.devices()
    assert device.num_restarts == 1
    assert device.swap is not None
    assert device.swap.num_copies_in_flight == 0
    assert all(tier.num_free_bytes == tier.num_bytes for tier in device.swap.tiers)


async def test_two_devices(options: tuple[str, ...], quiet: list[tuple[int, ...]]) -> None:
    """Two drivers of one thread each share the load; which one a process got does not show."""
    with running_server(*options, "--pool-mib", "128", "--devices", "2", gateway=False) as server:
        assert await run_together(server) == quiet
        async with open_client(server.socket_path) as client:
            assert all(device.num_steps > 0 for device in await client.devices())
