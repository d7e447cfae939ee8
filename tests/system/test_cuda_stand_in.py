"""What if memory is a GPU's? The same bits however a process is disturbed, and faults stay where they are.

There is no GPU: the driver library is the stand-in of tests/fake_cuda.c, and torch is on the processor.
Everything else (paging, copies, fences, faults, restarts) is the driver's own code.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from llmos.bench.server import Server
from syscalls.client import Client, open_client
from syscalls.process import ExitStatus
from tests.fake_cuda import ILLEGAL_ADDRESS, OUT_OF_MEMORY, load_fake
from tests.reading import read_all
from tests.system.leaks import counted_server
from tests.system.middle import in_the_middle
from tests.system.test_transparency import check_forks, requests, run_one, run_together

OPTIONS = ("--device", "cuda", "--threads", "1", "--frame-kib", "64")  # the least that the stand-in maps


@attrs.frozen
class StandIn:
    """What the drivers of this module open, and the file by which a test gives it orders."""

    orders: Path

    def fail(self, call: str, code: int, after: int = 0) -> None:
        """Let a call fail once, in the driver that makes it next."""
        draft = self.orders.with_suffix(".draft")
        draft.write_text(f"{call} {after} {code}\n")
        draft.rename(self.orders)

    def fail_at_start(self, call: str, code: int, times: int) -> None:
        """Let a call fail in each of the next so many drivers."""
        draft = self.orders.with_suffix(".draft")
        draft.write_text(f"{call} 0 {code} {times}\n")
        draft.rename(self.orders.with_name(self.orders.name + ".start"))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """In the environment of every server here."""
    stand_in = StandIn(tmp_path_factory.mktemp("stand-in") / "orders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOS_LIBCUDA", load_fake().library)
        patch.setenv("FAKE_CUDA_CONTROL", str(stand_in.orders))
        patch.delenv("TRITON_INTERPRET", raising=False)  # tests of kernels want it
        yield stand_in


@contextmanager
def sharing_nothing() -> Iterator[Server]:
    """A server that shares nothing between processes; no page is mapped ahead. Ends with the leak count."""
    with counted_server(
        *OPTIONS, "--pool-mib", "64", "--no-prefix-cache", "--mapping", "sync", gateway=False
    ) as running:
        yield running


@pytest.fixture(scope="module")
def server(stand_in: StandIn) -> Iterator[Server]:
    """One for all tests that break nothing."""
    with sharing_nothing() as running:
        yield running


@pytest.fixture
def fresh_server(stand_in: StandIn) -> Iterator[Server]:
    """One for a single test: no page is mapped yet that could be used again, so the next one is a call."""
    with sharing_nothing() as running:
        yield running


@pytest.fixture(scope="module")
def quiet(server: Server) -> list[tuple[int, ...]]:
    """Each request alone: the truth."""

    async def one_after_the_other() -> list[tuple[int, ...]]:
        async with open_client(server.socket_path) as client:
            return [await run_one(client, request) for request in requests()]

    return trio.run(one_after_the_other)


async def test_together(server: Server, quiet: list[tuple[int, ...]]) -> None:
    """Thirty-two at once; nobody takes the device for a GPU."""
    assert await run_together(server) == quiet
    async with open_client(server.socket_path) as client:
        (device,) = await client.devices()
    assert (device.name, device.kind) == ("cuda:0", "cuda")
    assert device.description == "stand-in for a CUDA driver, without a GPU: torch computes on the processor"


async def test_forked(server: Server, quiet: list[tuple[int, ...]]) -> None:
    """Frames are shared, and copied on the device."""
    await check_forks(server, quiet, [i for i, r in enumerate(requests()) if r.max_tokens == 40][:6])


async def test_swapped_shared_and_cut(
    stand_in: StandIn, quiet: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """Little memory, changing priorities, chunks, a prefix cache; pages go to each tier and back; a fault."""
    options = ("--pool-mib", "4", "--max-chunk-tokens", "48", "--preempt", "swap", "--policy", "rerank")
    options += ("--rerank-steps", "7", "--swap-mib", "1", "--swap-file-mib", "64")
    with counted_server(*OPTIONS, *options, "--image-folder", str(tmp_path), gateway=False) as swapping:
        async with open_client(swapping.socket_path) as client:
            while not await is_each_tier_used(client):  # one round nearly always has that
                assert await run_together(swapping) == quiet
            await save_and_go_on(client, quiet)
            (device,) = await client.devices()
        assert await run_together_sabotaged(swapping, stand_in, "cuMemcpyDtoHAsync_v2") == quiet
    assert device.num_preemptions > 0
    assert device.swap is not None
    assert device.swap.num_faulty_pages == 0
    assert all(tier.num_free_bytes == tier.num_bytes for tier in device.swap.tiers)


async def is_each_tier_used(client: Client) -> bool:
    """Whether pages have gone to each tier of the only device, and have come back."""
    (device,) = await client.devices()
    assert device.swap is not None
    least = 2 * device.frame_bytes
    return all(min(tier.num_bytes_out, tier.num_bytes_in) >= least for tier in device.swap.tiers)


async def save_and_go_on(client: Client, quiet: list[tuple[int, ...]]) -> None:
    """A process that is saved in the middle, in a file, and restored: both go on with the same bits."""
    i = next(i for i, each in enumerate(requests()) if each.max_tokens == 40 and len(each.prompt) > 100)
    request = requests()[i]
    pid, saved = await in_the_middle(
        client,
        lambda pid: client.checkpoint(pid, "middle"),
        request.prompt,
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        ignore_eos=True,
    )
    assert saved.num_saved_tokens > 100
    for each in (pid, *(await client.restore("middle")).pids):
        assert (await read_all(client, each))[0] == quiet[i]
        await client.wait(each)
    await client.remove_image("middle")


async def test_out_of_memory_is_of_one_process(
    fresh_server: Server, stand_in: StandIn, quiet: list[tuple[int, ...]]
) -> None:
    """The device refuses one mapping: its process ends and says which call; the others are as ever."""
    chosen = [i for i, request in enumerate(requests()) if len(request.prompt) > 60][:8]
    ends: dict[int, tuple[tuple[int, ...], ExitStatus]] = {}
    async with open_client(fresh_server.socket_path) as client, trio.open_nursery() as nursery:
        stand_in.fail("cuMemMap", OUT_OF_MEMORY, after=3)

        async def one(i: int) -> None:
            request = requests()[i]
            spawned = await client.spawn(
                request.prompt, max_tokens=request.max_tokens, sampling=request.sampling, ignore_eos=True
            )
            ends[i] = await read_all(client, spawned.pids[0])
            await client.wait(spawned.pids[0])

        for i in chosen:
            nursery.start_soon(one, i)
    failed = [end.message for _, end in ends.values() if end.reason == "error"]
    assert failed == ["Map: cuMemMap: CUDA_ERROR_OUT_OF_MEMORY"]
    assert sorted(tokens for tokens, end in ends.values() if end.reason == "length") == sorted(
        quiet[i] for i in chosen if ends[i][1].reason == "length"
    )
    async with open_client(fresh_server.socket_path) as client:
        (device,) = await client.devices()
    assert (device.state, device.num_restarts) == ("ready", 0)


async def test_a_device_beyond_use_is_restarted(
    fresh_server: Server, stand_in: StandIn, quiet: list[tuple[int, ...]]
) -> None:
    """An illegal access ends the driver behind some step; another one goes on with all processes."""
    assert await run_together_sabotaged(fresh_server, stand_in, "cuEventRecord") == quiet


async def test_what_an_image_holds_is_read_again_after_a_fault(
    stand_in: StandIn, quiet: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """A restored process comes back from its file by another driver, and computes only what was not in it."""
    i = next(i for i, each in enumerate(requests()) if each.max_tokens == 40 and len(each.prompt) > 100)
    request = requests()[i]
    options = ("--pool-mib", "64", "--no-prefix-cache", "--image-folder", str(tmp_path))
    with counted_server(*OPTIONS, *options, gateway=False) as server:
        async with open_client(server.socket_path) as client:
            (pid,) = (
                await client.spawn(request.prompt, max_tokens=40, sampling=request.sampling, ignore_eos=True)
            ).pids
            await client.read(pid)
            saved = await client.checkpoint(pid, "middle")
            assert (await read_all(client, pid))[0] == quiet[i]
            await client.wait(pid)
            before = await client.statistics()
            stand_in.fail("cuEventRecord", ILLEGAL_ADDRESS, after=12)  # some steps behind the copies in
            (pid,) = (await client.restore("middle")).pids
            assert (await read_all(client, pid))[0] == quiet[i]
            await client.wait(pid)
            after = await client.statistics()
            (device,) = await client.devices()
            await client.remove_image("middle")
    assert device.num_restarts == 1
    assert saved.num_saved_tokens >= len(request.prompt)
    assert after.num_prompt_tokens == before.num_prompt_tokens


async def test_a_device_that_is_beyond_use_for_a_while_comes_back(
    fresh_server: Server, stand_in: StandIn, quiet: list[tuple[int, ...]]
) -> None:
    """The next two drivers meet the error as they load; the one after them goes on with all processes."""
    stand_in.fail_at_start("cuMemAddressReserve", ILLEGAL_ADDRESS, times=2)
    assert await run_together_sabotaged(fresh_server, stand_in, "cuEventRecord", num_restarts=3) == quiet
    async with open_client(fresh_server.socket_path) as client:
        texts = [event.text for event in await client.events()]
    assert sum("CudaFault" in text and "restarting" in text for text in texts) == 2


async def run_together_sabotaged(
    server: Server, stand_in: StandIn, call: str, num_restarts: int = 1
) -> list[tuple[int, ...]]:
    """All requests at once; in the middle a call says that the device is beyond use."""
    async with open_client(server.socket_path) as client:
        before = (await client.devices())[0]
        async with trio.open_nursery() as nursery:

            async def saboteur() -> None:
                begun = (await client.statistics()).num_output_tokens
                while (await client.statistics()).num_output_tokens < begun + 60:  # noqa: ASYNC110
                    await trio.sleep(0.005)
                stand_in.fail(call, ILLEGAL_ADDRESS)

            nursery.start_soon(saboteur)
            outputs = await run_together(server)
        while (after := (await client.devices())[0]).num_restarts < before.num_restarts + num_restarts:
            outputs = await run_together(server)  # the order came too late for those before
    assert after.num_restarts == before.num_restarts + num_restarts
    assert after.driver_pid != before.driver_pid
    return outputs


def test_without_a_library_it_is_refused_in_a_line(tmp_path: Path) -> None:
    """`llmos up --device cuda` names what is missing."""
    command = [sys.executable, "-m", "llmos.cli", "up", "--device", "cuda", "--listen", ""]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOS_LIBCUDA", "libnothing.so.1")
        done = subprocess.run(
            [*command, "--socket", str(tmp_path / "socket")], capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "llmos: device cuda:0: cuda:0 is not there: there is no CUDA driver: libnothing.so.1: "
        "cannot open shared object file: No such file or directory"
    )


def test_the_doctor_takes_no_stand_in_for_a_gpu(stand_in: StandIn) -> None:
    """It can serve when it is asked for by name; `--device auto` passes it over."""
    done = subprocess.run(
        [sys.executable, "-m", "llmos.cli", "doctor"], capture_output=True, text=True, check=False
    )
    (line,) = [line for line in done.stdout.splitlines() if "device cuda" in line]
    assert line.split() == [
        "no",
        "device",
        "cuda",
        "stand-in",
        "for",
        "a",
        "CUDA",
        "driver,",
        "without",
        "a",
        "GPU:",
        "torch",
        "computes",
        "on",
        "the",
        "processor",
    ]
