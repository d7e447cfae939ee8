"""Prompts beside decodes are cut to the target, on a device that says how long its steps take."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from drivers.sim import SimDriver
from llmos.cost import CostModel, StepWork
from llmos.device import Step
from llmos.params import SMALL_REST
from tests.kernel.harness import MODEL, RunningKernel, running_kernel

COST = CostModel(base=0.002, per_token=0.5e-3, per_row=0.1e-3)
TARGET_SECONDS = 0.05
LONGEST_SECONDS = (1 + SMALL_REST) * TARGET_SECONDS  # of a step that ends a prompt
PROMPT_TOKENS = 450
LISTENERS = [tuple(range(i, i + 20)) for i in range(1, 9)]


def mixed_step_seconds(steps: list[Step]) -> list[float]:
    """What the cost model says of the steps that hold decodes and prompts."""
    found = []
    for step in steps:
        work = StepWork()
        for row in step.rows:
            work = work.with_row(row.start, row.num_tokens)
        if any(not row.tokens for row in step.rows) and work.num_tokens > work.num_rows:
            found.append(COST.step_seconds(work))
    return found


async def serve_prompts(kernel: RunningKernel, first: int, count: int) -> None:
    """Run processes with long prompts one after the other."""
    for i in range(first, first + count):
        prompt = tuple((7 * i + j) % 500 for j in range(PROMPT_TOKENS))
        (pid,) = (await kernel.client.spawn(prompt, max_tokens=2)).pids
        tokens = [token async for output in kernel.client.stream(pid) for token in output.tokens]
        assert tuple(tokens) == MODEL.expected_tokens(prompt, 2)
        await kernel.client.wait(pid)


async def test_a_device_that_becomes_slower(autojump_clock, tmp_path: Path) -> None:
    """What if a device takes three times as long as it said? After some steps the target is kept again."""
    make = partial(SimDriver, cost=COST, record=True)
    async with running_kernel(tmp_path, make, step_target_ms=1e3 * TARGET_SECONDS) as kernel:

        async def listen(prompt: tuple[int, ...]) -> None:
            (pid,) = (await kernel.client.spawn(prompt, max_tokens=1000)).pids
            tokens = [token async for output in kernel.client.stream(pid) for token in output.tokens]
            assert tuple(tokens) == MODEL.expected_tokens(prompt, 1000)
            await kernel.client.wait(pid)

        async with trio.open_nursery() as nursery:
            for prompt in LISTENERS:
                nursery.start_soon(listen, prompt)
            await trio.sleep(0.2)
            await serve_prompts(kernel, 0, 3)
            as_told = mixed_step_seconds(kernel.sim.steps)
            num_steps = len(kernel.sim.steps)
            kernel.sim.slowness = 3.0
            await serve_prompts(kernel, 3, 4)
            slower = [3.0 * seconds for seconds in mixed_step_seconds(kernel.sim.steps[num_steps:])]
    assert len(as_told) >= 15
    assert max(as_told) <= LONGEST_SECONDS
    assert sum(seconds > 0.9 * TARGET_SECONDS for seconds in as_told) > len(as_told) / 2
    assert len(slower) > 60
    assert max(slower) > 2 * TARGET_SECONDS  # at first
    assert max(slower[30:]) <= 1.1 * LONGEST_SECONDS
    assert sum(seconds > 0.8 * TARGET_SECONDS for seconds in slower[30:]) > len(slower[30:]) / 2


async def test_a_prompt_alone_takes_whole_steps(autojump_clock, tmp_path: Path) -> None:
    """Where nobody decodes, a prompt is computed in the fewest steps, far over the target; lsdev says why."""
    make = partial(SimDriver, cost=COST, record=True)
    async with running_kernel(tmp_path, make, step_target_ms=10.0, max_step_tokens=512) as kernel:
        await serve_prompts(kernel, 0, 1)
        assert [sum(row.num_tokens for row in step.rows) for step in kernel.sim.steps] == [PROMPT_TOKENS, 1]
        (device,) = await kernel.client.devices()
        assert device.step_cost is not None
        assert device.step_cost.per_token == COST.per_token
        assert device.step_cost.correction == 1.0
