"""How likely each token of a prompt was: told once, in order, whatever happens to the process meanwhile."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver
from drivers.sim_model import ROOT_STATE, mix
from llmos.cost import CopyCost
from syscalls.client import Client
from syscalls.errno import Errno, SyscallError
from syscalls.process import Output
from syscalls.sampling import Sampling, TokenLogprobs
from tests.kernel.harness import MODEL, running_kernel, wait_until

SCORED = Sampling(prompt_logprobs=2)


def prompt(number: int, length: int) -> tuple[int, ...]:
    """A prompt that nobody else has."""
    return tuple((number * 37 + i) % 500 for i in range(length))


def scores_of(tokens: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
    """The whole truth: one token after the other, each against the state before it."""
    state, found = ROOT_STATE, []
    for token, following in pairwise(tokens):
        state = mix(state, token)
        found.append(MODEL.logprobs(following, state, 2))
    return tuple(found)


async def finish(client: Client, pid: int) -> Output:
    """Wait for a process to end; read all of it again, from the beginning."""
    async for _ in client.stream(pid):
        pass
    output = await client.read(pid)
    await client.wait(pid)
    return output


@pytest.mark.parametrize("length", [2, 63, 64, 65, 66, 200])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
async def test_scores_are_those_of_the_model(
    tmp_path: Path, autojump_clock: trio.abc.Clock, length: int, max_tokens: int
) -> None:
    """Around the border of a chunk, with and without output; found pages are no reason to leave any out."""
    async with running_kernel(tmp_path) as kernel:
        given = prompt(1, length)
        for _ in range(2):
            (pid,) = (await kernel.client.spawn(given, max_tokens=max_tokens, sampling=SCORED)).pids
            output = await finish(kernel.client, pid)
            assert output.prompt_logprobs == scores_of(given)
            assert output.tokens == MODEL.expected_tokens(given, max_tokens)
            assert output.end is not None
            assert (output.end.reason, output.usage.num_cached_tokens) == ("length", 0)
        (pid,) = (await kernel.client.spawn(given, max_tokens=1)).pids
        assert (await finish(kernel.client, pid)).prompt_logprobs == ()


async def test_preempted_ones_have_all_their_scores(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Memory for ten, forty admitted, and the device is lost once in between."""
    make = partial(SimDriver, num_frames=10 * 2 * 8, host_cost=CopyCost(1e-5, 1e6))
    async with running_kernel(tmp_path, make, swap_mib=1) as kernel:
        client, pids = kernel.client, []
        for number in range(40):
            length = 80 + number % 30
            pids += (await client.spawn(prompt(number, length), max_tokens=20, sampling=SCORED)).pids
        await wait_until(lambda: len(kernel.system.table.get(pids[0]).prompt_logprobs) > 0)
        kernel.sim.kill()
        for number, pid in enumerate(pids):
            given = prompt(number, 80 + number % 30)
            output = await finish(client, pid)
            assert output.prompt_logprobs == scores_of(given)
            assert output.tokens == MODEL.expected_tokens(given, 20)
        (core,) = kernel.system.cores.values()
        assert core.statistics().num_preemptions > 0


async def test_an_image_in_the_middle_of_a_prompt(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """What was scored is in the image, and the rest follows."""
    async with running_kernel(tmp_path) as kernel:
        client, given = kernel.client, prompt(3, 300)
        (pid,) = (await client.spawn(given, max_tokens=0, sampling=SCORED)).pids
        await wait_until(lambda: len(kernel.system.table.get(pid).prompt_logprobs) > 0)
        await client.checkpoint(pid, "half")
        assert (await finish(client, pid)).prompt_logprobs == scores_of(given)
        (restored,) = (await client.restore("half")).pids
        assert (await finish(client, restored)).prompt_logprobs == scores_of(given)


async def test_only_the_first_sample_has_them(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The others share its prefill."""
    async with running_kernel(tmp_path) as kernel:
        given = prompt(3, 100)
        first, second = (await kernel.client.spawn(given, max_tokens=3, sampling=SCORED, num_samples=2)).pids
        assert (await finish(kernel.client, first)).prompt_logprobs == scores_of(given)
        assert (await finish(kernel.client, second)).prompt_logprobs == ()


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": Sampling()},
        {"sampling": SCORED, "num_samples": 2},
        {"sampling": SCORED, "interactive": True},
        {"sampling": SCORED, "prompt": (1,)},
    ],
)
async def test_nothing_to_do_is_refused(
    tmp_path: Path, autojump_clock: trio.abc.Clock, options: dict[str, object]
) -> None:
    """No output is only for those whose prompt is scored."""
    async with running_kernel(tmp_path) as kernel:
        with pytest.raises(SyscallError, match="max_tokens is 0") as refused:
            await kernel.client.spawn(**{"prompt": (1, 2, 3), "max_tokens": 0, **options})
        assert refused.value.errno is Errno.EINVAL
