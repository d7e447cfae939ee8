"""How many steps a device is sent ahead of its answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver
from llmos.cost import CostModel
from llmos.device import Step
from tests.kernel.harness import MODEL, running_kernel

PROMPTS = [tuple(range(i, i + 20)) for i in range(1, 5)]


@pytest.mark.parametrize("steps_in_flight", [1, 2])
async def test_tokens_do_not_depend_on_it(autojump_clock, tmp_path: Path, steps_in_flight: int) -> None:
    """With one, each step knows all tokens before it; with two, decodes are planned without. Same tokens."""
    make = partial(SimDriver, cost=CostModel(base=0.002, per_token=0.5e-3, per_row=0.1e-3), record=True)
    async with running_kernel(tmp_path, make, steps_in_flight=steps_in_flight) as kernel:
        (core,) = kernel.system.cores.values()

        async def run(prompt: tuple[int, ...]) -> None:
            (pid,) = (await kernel.client.spawn(prompt, max_tokens=30)).pids
            tokens: list[int] = []
            async for output in kernel.client.stream(pid):
                tokens += output.tokens
                assert len(core.in_flight) <= steps_in_flight
            assert tuple(tokens) == MODEL.expected_tokens(prompt, 30)
            await kernel.client.wait(pid)

        async with trio.open_nursery() as nursery:
            for prompt in PROMPTS:
                nursery.start_soon(run, prompt)
        assert (num_rows_ahead(kernel.sim.steps) > 0) == (steps_in_flight == 2)


def num_rows_ahead(steps: list[Step]) -> int:
    """Rows whose token was not known when they were sent."""
    return sum(not row.tokens for step in steps for row in step.rows)
