"""What the kernel's own work costs in a step: 256 processes decode on a simulated device with no latency."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from drivers.sim import SimDriver
from llmos.cost import CostModel
from llmos.device import FromDriver, Load, Loaded, StepDone, ToDriver
from llmos.proc.pcb import Pid, Process
from llmos.sched.accounts import Accounts
from llmos.sched.batch import BatchLimits
from llmos.sched.core import Core
from llmos.sched.fair import TokenFair
from llmos.sched.memory_options import MemoryOptions
from llmos.sched.messages import DriverUp, Enqueue, StepFinished
from syscalls.sampling import Sampling

PROMPT_TOKENS = 32


class TimedLink:
    """A simulated device that keeps count of the time its own simulation takes, to be left out."""

    def __init__(self, sim: SimDriver) -> None:
        self._sim = sim
        self.seconds = 0.0

    async def send(self, message: ToDriver) -> None:
        """See DriverLink."""
        began = time.thread_time()
        await self._sim.send(message)
        self.seconds += time.thread_time() - began

    async def receive(self) -> FromDriver:
        """See DriverLink."""
        return await self._sim.receive()

    def kill(self) -> None:
        """See DriverLink."""
        self._sim.kill()

    async def aclose(self) -> None:
        """See DriverLink."""
        await self._sim.aclose()


def make_process(pid: int, max_tokens: int) -> Process:
    """A process as spawn would make it."""
    prompt = [(pid * 31 + i) % 500 for i in range(PROMPT_TOKENS)]
    return Process(
        pid=Pid(pid),
        tenant="bench",
        session=None,
        model="sim",
        device="sim:0",
        sampling=Sampling(seed=pid),
        stop_tokens=frozenset(),
        spawned_at=0.0,
        arrival=pid,
        tokens=prompt,
        turn_start=len(prompt),
        max_tokens=max_tokens,
    )


async def measure_steps(num_processes: int, num_steps: int) -> float:
    """Processor seconds of kernel work per step, the simulated device's own work left out."""
    sim = SimDriver(cost=CostModel(), num_frames=num_processes * 2 * 64)
    link = TimedLink(sim)
    ended: list[Process] = []
    limits = BatchLimits(max_step_tokens=8192, max_rows=num_processes, max_chunk_tokens=8192)
    accounts = Accounts()
    policy = TokenFair(accounts)
    memory = MemoryOptions(max_spaces=2 * num_processes)
    core = Core("sim:0", policy, accounts, limits, num_processes, memory, ended.append)
    async with trio.open_nursery() as nursery:
        await sim.receive()  # Hello
        await sim.send(Load("", "sim", "auto", "auto", None, None, 2 * num_processes, None, 8192))
        loaded = await sim.receive()
        assert isinstance(loaded, Loaded)
        nursery.start_soon(core.run)
        core.mailbox.send_nowait(Enqueue([make_process(1, num_steps + 64)]))
        for pid in range(2, num_processes + 1):
            core.mailbox.send_nowait(Enqueue([make_process(pid, num_steps + 64)]))
        core.mailbox.send_nowait(DriverUp(link, loaded))

        async def pump(until: Callable[[], bool]) -> None:
            while not until():
                message = await link.receive()
                assert isinstance(message, StepDone)
                core.mailbox.send_nowait(StepFinished(message))

        await pump(lambda: core.completion.num_steps >= 32)
        began, simulated, first = time.thread_time(), link.seconds, core.completion.num_steps
        await pump(lambda: core.completion.num_steps >= first + num_steps)
        seconds = (time.thread_time() - began - (link.seconds - simulated)) / (
            core.completion.num_steps - first
        )
        assert len(core.residents.queue.running) == num_processes
        assert not ended
        await link.aclose()
        nursery.cancel_scope.cancel()
    return seconds


def step_seconds(num_processes: int = 256, num_steps: int = 300) -> float:
    """One measurement, in a loop of its own."""
    return trio.run(measure_steps, num_processes, num_steps)
