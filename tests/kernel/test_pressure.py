"""Memory gets short, and is given up in order: cached pages first, then whose turn it is to wait."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from drivers.sim import SimDriver
from llmos.cost import CopyCost
from tests.kernel.harness import MODEL, running_kernel
from tests.reading import finish

NUM_PAGES = 16  # of 16 tokens and two frames each


def prompt(number: int, length: int) -> tuple[int, ...]:
    """A prompt that nobody else has."""
    return tuple((number * 37 + i) % 500 for i in range(length))


async def test_the_ladder(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The cache goes before anybody waits, processes are swapped before anybody is killed."""
    make = partial(SimDriver, num_frames=2 * NUM_PAGES, host_cost=CopyCost(1e-5, 1e6))
    async with running_kernel(tmp_path, make, swap_mib=1, preempt="swap") as kernel:
        (core,) = kernel.system.cores.values()

        async def run(number: int, length: int, max_tokens: int) -> None:
            (pid,) = (await kernel.client.spawn(prompt(number, length), max_tokens=max_tokens)).pids
            assert await finish(kernel.client, pid) == MODEL.expected_tokens(
                prompt(number, length), max_tokens
            )

        async def run_all(*processes: tuple[int, int, int]) -> None:
            async with trio.open_nursery() as nursery:
                for process in processes:
                    nursery.start_soon(run, *process)

        def count() -> tuple[int, int, int]:
            statistics = core.statistics()
            assert statistics.memory is not None
            assert statistics.swap is not None
            swapped = statistics.swap.tiers["host"].num_bytes_out
            return statistics.memory.prefix.num_evicted_pages, statistics.num_preemptions, swapped

        await run(1, 160, 16)
        memory = core.statistics().memory
        assert memory is not None
        assert memory.num_cached == 2 * 11
        assert count() == (0, 0, 0)
        await run_all((2, 80, 16), (3, 80, 16))  # six pages each, and there are five free ones
        num_evicted, *others = count()
        assert num_evicted > 0
        assert others == [0, 0]
        await run_all(*((number, 40, 100) for number in range(4, 8)))  # nine pages each in the end
        _, num_preemptions, num_bytes = count()
        assert num_preemptions > 0
        assert num_bytes > 0
        assert not [event for event in kernel.system.events.since(0, 1000) if event.subsystem == "oom"]
