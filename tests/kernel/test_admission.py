"""Who is admitted can run: the memory for its prompt is there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from drivers.sim import SimDriver
from tests.kernel.harness import MODEL, running_kernel


def prompt(number: int, length: int) -> tuple[int, ...]:
    """A prompt that nobody else has."""
    return tuple((number * 37 + i) % 500 for i in range(length))


async def test_prompts_keep_what_they_will_take(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Prompts are computed and mapped piece by piece; nobody is let in on what they have yet to map."""
    make = partial(SimDriver, num_frames=2 * 10 + 4)  # two of them, in their whole length
    async with running_kernel(
        tmp_path, make, policy="fcfs", max_step_tokens=16, prefix_cache=False
    ) as kernel:
        pids = [(await kernel.client.spawn(prompt(n, 64), max_tokens=8)).pids[0] for n in range(8)]
        for number, pid in enumerate(pids):
            tokens = [token async for output in kernel.client.stream(pid) for token in output.tokens]
            assert tuple(tokens) == MODEL.expected_tokens(prompt(number, 64), 8)
            await kernel.client.wait(pid)
        (core,) = kernel.system.cores.values()
        assert core.statistics().num_preemptions == 0
