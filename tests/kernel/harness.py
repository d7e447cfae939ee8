"""A whole kernel on simulated devices, in this process and on the virtual clock, with real clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from drivers.sim import SimDriver
from drivers.sim_model import SimModel
from llmos.boot import Ready, boot
from llmos.config import Config
from llmos.device import DriverLink
from llmos.kernel.driver_host import OpenLink
from llmos.kernel.grammar_check import GrammarCheck
from llmos.kernel.system import System
from llmos.proc.lifecycle import ProcState
from llmos.sched.core import Core
from syscalls.client import Client, open_client

MODEL = SimModel(vocab_size=512)


@attrs.define(eq=False)
class RunningKernel:
    """What a test can get at."""

    system: System
    socket_path: str
    client: Client
    sims: dict[str, list[SimDriver]]  # by device, in order of their starts

    @property
    def sim(self) -> SimDriver:
        """The only device's driver that runs now."""
        (drivers,) = self.sims.values()
        return drivers[-1]

    def check_integrity(self) -> None:
        """No invariant is broken on any device, on either side of the driver protocol."""
        for core in self.system.cores.values():
            core.residents.check_integrity()
        for drivers in self.sims.values():
            for driver in drivers:
                assert driver.violations == []

    def assert_nothing_leaked(self) -> None:
        """Every process is reaped and every frame is free or cached: back where it began."""
        assert list(self.system.table) == []
        for core in self.system.cores.values():
            statistics = core.statistics()
            assert core.residents.queue.members == {}
            if core.loaded is None:  # its model was unloaded
                continue
            assert statistics.memory is not None
            assert statistics.memory.num_spaces == 0
            assert statistics.memory.num_free + statistics.memory.num_cached == statistics.memory.num_frames
        self.check_integrity()


@asynccontextmanager
async def running_kernel(
    tmp_path: Path,
    make_sim: Callable[..., SimDriver] = SimDriver,
    check_leaks: bool = True,
    **options: object,
) -> AsyncIterator[RunningKernel]:
    """Boot on simulated devices; on the way out check that nothing leaked, then shut down.

    Args:
        tmp_path: for the socket.
        make_sim: makes a device's driver, given its name; called again when the driver is restarted.
        check_leaks: off for tests that end with live processes on purpose.
        options: fields of Config.
    """
    defaults = {"image_folder": str(tmp_path / "images")}
    config = Config(device="sim", listen="", socket=str(tmp_path / "llmos.sock"), **defaults | options)
    sims: dict[str, list[SimDriver]] = {}

    def open_link(name: str) -> OpenLink:
        async def open_one() -> DriverLink:
            await trio.lowlevel.checkpoint()
            sim = make_sim(name=name)
            sims.setdefault(name, []).append(sim)
            return sim

        return open_one

    async with trio.open_nursery() as nursery:
        started: tuple[System, Ready] = await nursery.start(partial(boot, config, "sim", open_link=open_link))
        system, ready = started
        system.errands.run_blocking = run_in_place
        system.grammars = GrammarCheck(lambda source: None)  # tests/kernel/test_grammar_check.py
        async with open_client(ready.socket_path, name="test") as client:
            kernel = RunningKernel(system, ready.socket_path, client, sims)
            yield kernel
            kernel.check_integrity()
        await wait_until(lambda: system.num_sessions == 0)
        if check_leaks:
            await wait_until(lambda: all(p.state is ProcState.ZOMBIE for p in system.table))
            await wait_until(lambda: not any(map(num_copies_under_way, system.cores.values())))
            kernel.assert_nothing_leaked()
        system.request_shutdown(0.0)


def num_copies_under_way(core: Core) -> int:
    """Copies between tiers that a device has not ended; they hold frames."""
    statistics = core.statistics().swap
    return statistics.num_in_flight if statistics else 0


async def run_in_place(function: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
    """Run a function that blocks for a moment: a virtual clock does not wait for threads.

    `how` a thread would do it does not matter.
    """
    await trio.lowlevel.checkpoint()
    return function(*arguments)


async def wait_until(condition: Callable[[], bool]) -> None:
    """Let the kernel run until something is so; a minute of virtual time at most."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - a condition over anything has no event
            await trio.sleep(0.001)
