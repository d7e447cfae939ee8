"""When the device had each token: told to who asks at spawn, whatever happens on the token's way out."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver
from llmos.cost import CostModel
from tests.kernel.harness import running_kernel

STEP_SECONDS = 0.25


async def test_times_are_those_of_the_steps(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """One step apart, at the device and not at the reader, who comes late; nobody else is told any."""
    make_sim = partial(SimDriver, cost=CostModel(base=STEP_SECONDS))
    async with running_kernel(tmp_path, make_sim) as kernel:
        began = trio.current_time()
        (timed,) = (await kernel.client.spawn((5, 6, 7), max_tokens=9, token_times=True)).pids
        (other,) = (await kernel.client.spawn((5, 6, 8), max_tokens=9)).pids
        first = await kernel.client.read(timed)
        await trio.sleep(60)
        # What the kernel adds, for the virtual clock is not ours, lies between these two.
        least = time.time() - trio.current_time()
        late = await kernel.client.read(timed, 2)
        most = time.time() - trio.current_time()
        assert len(first.times) == len(first.tokens) > 0
        assert len(late.times) == len(late.tokens) == 7
        for earlier, later in pairwise(late.times):
            assert later - earlier == pytest.approx(STEP_SECONDS, abs=1e-3)
        third = late.times[0] - began - 3 * STEP_SECONDS
        assert least - 0.1 <= third <= most + 0.1
        assert (await kernel.client.read(other)).times == ()
        for pid in (timed, other):
            await kernel.client.wait(pid)


async def test_a_child_tells_none(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Times belong to the spawn that asked: a fork has the tokens of its own only, and tells no times."""
    async with running_kernel(tmp_path) as kernel:
        options = {"interactive": True, "token_times": True}
        (parent,) = (await kernel.client.spawn((5, 6, 7), max_tokens=3, **options)).pids
        async for _ in kernel.client.stream(parent):
            pass
        (child,) = (await kernel.client.fork(parent)).pids
        await kernel.client.write(child, (9,), 3)
        outputs = [output async for output in kernel.client.stream(child)]
        assert all(output.times == () for output in outputs)
        await kernel.client.write(parent, (9,), 3)
        outputs = [output async for output in kernel.client.stream(parent, 3)]
        assert sum(len(output.times) for output in outputs) == 3
        for pid in (parent, child):
            await kernel.client.kill(pid)
            await kernel.client.wait(pid)
