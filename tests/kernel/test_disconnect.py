"""What if a client goes away in the middle? Within a step its process is gone, wherever its memory was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Process
from syscalls.client import open_client
from tests.kernel.harness import running_kernel, wait_until

NUM_CLIENTS = 12
PROMPT = tuple(range(100))

PHASES: dict[str, Callable[[Process], bool]] = {
    "queued": lambda p: p.state is ProcState.READY and p.num_computed == 0,
    "prefill": lambda p: p.state is ProcState.RUNNING and 0 < p.num_computed < len(PROMPT),
    "decode": lambda p: p.state is ProcState.RUNNING and len(p.output) > 5,
    "swapped": lambda p: p.state is ProcState.SWAPPED,
}


@pytest.mark.parametrize("phase", PHASES)
async def test_what_if_a_client_goes_away(autojump_clock, tmp_path: Path, phase: str) -> None:
    """Queued, in its prompt, decoding or swapped out: gone within a step; the others do not notice."""
    make = partial(SimDriver, num_frames=2 * 40)  # for five processes at their end
    options = {"swap_mib": 1, "preempt": "swap", "prefix_cache": False, "max_chunk_tokens": 8}
    async with running_kernel(tmp_path, make, max_running=6, **options) as kernel:
        leave: dict[int, trio.Event] = {}
        outputs: dict[int, list[int]] = {}

        async def hold() -> None:
            async with open_client(kernel.socket_path) as client, trio.open_nursery() as nursery:
                (pid,) = (await client.spawn(PROMPT, max_tokens=100)).pids
                leave[pid], outputs[pid] = trio.Event(), []

                async def read() -> None:
                    async for output in client.stream(pid):
                        outputs[pid] += output.tokens
                    nursery.cancel_scope.cancel()

                nursery.start_soon(read)
                await leave[pid].wait()
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(NUM_CLIENTS):
                nursery.start_soon(hold)
            found: list[Process] = []
            await wait_until(lambda: found.extend(filter(PHASES[phase], kernel.system.table)) or bool(found))
            victim, core = found[0], kernel.system.cores["sim:0"]
            num_steps = core.completion.num_steps
            leave[victim.pid].set()
            await wait_until(lambda: victim.pid not in {process.pid for process in kernel.system.table})
            assert core.completion.num_steps <= num_steps + 1
            (memory,) = await kernel.client.meminfo()
            assert victim.pid not in {each.pid for each in memory.processes}
            assert victim.space is None
        del outputs[victim.pid]
        assert len(outputs) == NUM_CLIENTS - 1
        assert {tuple(tokens) for tokens in outputs.values()} == {tuple(next(iter(outputs.values())))}
        assert {len(tokens) for tokens in outputs.values()} == {100}
