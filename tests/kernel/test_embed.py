"""Processes that end with a vector: the model's own, however they were cut, stopped, preempted or moved."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver, SimFaults
from llmos.cost import CopyCost
from syscalls.embedding import Pooling, read_vector
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus, Output
from syscalls.sampling import Sampling
from tests.kernel.harness import MODEL, running_kernel, wait_until

KINDS = ("last", "mean")


def prompt(number: int, length: int) -> tuple[int, ...]:
    """An input that nobody else has."""
    return tuple((number * 37 + i) % 500 for i in range(length))


@pytest.mark.parametrize("kind", KINDS)
async def test_vectors_are_those_of_the_model(
    tmp_path: Path, autojump_clock: trio.abc.Clock, kind: str
) -> None:
    """One token and many, in one call; twice, and the second time the last one's prefix is found."""
    async with running_kernel(tmp_path, max_step_tokens=64) as kernel:
        inputs = [prompt(i, length) for i, length in enumerate((1, 2, 63, 64, 65, 66, 500))]
        for time in range(2):
            embedded = await kernel.client.embed(inputs, pooling=kind, normalise=False, label="mine")
            expected = [MODEL.expected_vector(tokens, Pooling(kind, False)) for tokens in inputs]
            assert [output.vector for output in embedded.outputs] == expected
            assert embedded.vectors == [read_vector(vector) for vector in expected]
            for tokens, output in zip(inputs, embedded.outputs, strict=True):
                assert (output.tokens, output.end) == ((), ExitStatus("stop"))
                assert output.usage.num_prompt_tokens == len(tokens)
                cached = output.usage.num_cached_tokens
                assert (cached > 0) == (time == 1 and kind == "last" and len(tokens) > 16)


async def test_the_default_is_the_models(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The last token's, at length 1."""
    async with running_kernel(tmp_path) as kernel:
        (output,) = (await kernel.client.embed([(1, 2, 3)])).outputs
        assert output.vector == MODEL.expected_vector((1, 2, 3), Pooling("last", True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preempt", ["swap", "recompute"])
async def test_preempted_ones_have_the_same_vector(
    tmp_path: Path, autojump_clock: trio.abc.Clock, kind: str, preempt: str
) -> None:
    """Memory for a few, many admitted beside those who decode, and the device is lost once in between."""
    make = partial(SimDriver, num_frames=10 * 2 * 8, host_cost=CopyCost(1e-5, 1e6))
    options = {
        "swap_mib": 1,
        "preempt": preempt,
        "max_step_tokens": 48,
        "policy": "rerank",
        "rerank_steps": 3,
    }
    async with running_kernel(tmp_path, make, **options) as kernel:
        client = kernel.client
        inputs = [prompt(number, 90 + 13 * number % 200) for number in range(30)]
        chats = [
            (await client.spawn(prompt(100 + i, 60), max_tokens=60, nice=-5, auto_reap=True)).pids[0]
            for i in range(6)
        ]
        found: list[Output] = []

        async def embed() -> None:
            found.extend((await client.embed(inputs, pooling=kind)).outputs)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(embed)
            await wait_until(lambda: kernel.sim.statistics().num_steps > 20)
            kernel.sim.kill()
            for i, pid in enumerate(chats):
                tokens = [token async for output in client.stream(pid) for token in output.tokens]
                assert tuple(tokens) == MODEL.expected_tokens(prompt(100 + i, 60), 60)
        expected = [MODEL.expected_vector(tokens, Pooling(kind)) for tokens in inputs]
        assert [output.vector for output in found] == expected
        assert sum(output.usage.num_preemptions for output in found) > 10


@pytest.mark.parametrize("kind", KINDS)
async def test_stopped_and_saved_half_way(tmp_path: Path, autojump_clock: trio.abc.Clock, kind: str) -> None:
    """Stopped in the middle, it goes on; its image ends with the same vector."""
    async with running_kernel(tmp_path, max_step_tokens=16) as kernel:
        client, tokens = kernel.client, prompt(3, 400)
        answers: list[bytes] = []

        async def embed() -> None:
            answers.append((await client.embed([tokens], pooling=kind)).outputs[0].vector)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(embed)
            await wait_until(lambda: any(p.num_computed > 40 for p in kernel.system.table))
            (process,) = kernel.system.table
            await client.stop(process.pid)
            await trio.sleep(1)
            assert process.num_computed < 400
            await client.checkpoint(process.pid, "half")
            await client.cont(process.pid)
        (restored,) = (await client.restore("half", auto_reap=True)).pids
        answers.append((await client.read(restored)).vector)
        assert answers == [MODEL.expected_vector(tokens, Pooling(kind))] * 2


async def test_a_full_device_is_enough(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """An input that takes every frame has no need of a place for a next token; one token more never fits."""
    make = partial(SimDriver, num_frames=2 * 4)
    async with running_kernel(tmp_path, make) as kernel:
        (output,) = (await kernel.client.embed([prompt(1, 64)])).outputs
        assert output.vector == MODEL.expected_vector(prompt(1, 64), Pooling("last"))
        with pytest.raises(SyscallError, match="65 tokens need 10 frames") as refused:
            await kernel.client.embed([prompt(1, 65)])
        assert refused.value.errno is Errno.ENOMEM


async def test_a_cancelled_call_leaves_nothing(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Neither while it waits for its processes, nor while it waits for a vector; and it is charged."""
    async with running_kernel(tmp_path, max_step_tokens=16) as kernel:
        with trio.move_on_after(0.1) as scope:
            await kernel.client.embed([prompt(i, 300) for i in range(10)])
        assert scope.cancelled_caught
        await wait_until(lambda: not list(kernel.system.table))
        (share,) = await kernel.client.shares()
        assert 0 < share.num_prompt_tokens < 3000


async def test_a_fault_is_one_input_s_own(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The others have their vectors."""
    make = partial(SimDriver, faults=SimFaults(faulty_token=499))
    async with running_kernel(tmp_path, make) as kernel:
        outputs = (await kernel.client.embed([(1, 2), (3, 499), (4,)])).outputs
        assert [output.end.code if output.end else None for output in outputs] == [0, 1, 0]
        assert [len(output.vector) for output in outputs] == [32, 0, 32]


@pytest.mark.parametrize(
    ("inputs", "options", "errno", "message"),
    [
        ([], {}, Errno.EINVAL, "inputs has 0 entries; the limit is 1 to 128"),
        ([(1,)] * 129, {}, Errno.EINVAL, "inputs has 129 entries"),
        ([(1,), ()], {}, Errno.EINVAL, r"inputs\[1\] is empty"),
        ([(512,)], {}, Errno.EINVAL, r"inputs\[0\] holds an id outside the vocabulary of 512"),
        ([(1,)], {"pooling": "cls"}, Errno.EINVAL, "pooling is 'cls'; .* can do last, mean"),
        ([(1,)], {"nice": 20}, Errno.EINVAL, "nice is 20"),
        ([(1,)], {"deadline_seconds": -1.0}, Errno.EINVAL, "deadline_seconds is -1"),
        ([(1,)], {"cache_salt": "x" * 257}, Errno.EINVAL, "cache_salt has 257 characters"),
        ([(1,)], {"model": "gpt-5"}, Errno.ENOENT, "no model 'gpt-5'"),
        ([(1,) * 4097], {}, Errno.E2BIG, r"inputs\[0\] has 4097 tokens; the context is 4096"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused(
    tmp_path: Path, autojump_clock: trio.abc.Clock, inputs: list[tuple[int, ...]], options: dict[str, object],
    errno: Errno, message: str,
) -> None:  # fmt: skip
    """By name and limit, and no process is made of the inputs that are good."""
    async with running_kernel(tmp_path) as kernel:
        with pytest.raises(SyscallError, match=message) as refused:
            await kernel.client.embed(inputs, **options)
        assert refused.value.errno is errno
        assert kernel.system.num_spawned == 0


async def test_it_has_no_children(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """There is nothing to continue from."""
    async with running_kernel(tmp_path, max_step_tokens=16) as kernel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.client.embed, [prompt(1, 300)])
            await wait_until(lambda: bool(list(kernel.system.table)))
            (process,) = kernel.system.table
            with pytest.raises(SyscallError, match="makes a vector") as refused:
                await kernel.client.fork(process.pid)
            assert refused.value.errno is Errno.EINVAL
        (pid,) = (await kernel.client.spawn((1, 2), max_tokens=1, sampling=Sampling())).pids
        assert (await kernel.client.read(pid)).vector == b""
        await kernel.client.wait(pid)
