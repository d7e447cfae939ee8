"""The devices of a kernel: what each is made of, from the configuration, and how one is added."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import attrs

from llmos.config import Config
from llmos.device import Load, Progress
from llmos.ipc.supervisor import Runnable
from llmos.kernel.driver_host import DriverHost, OpenLink
from llmos.kernel.system import System
from llmos.loads import encodes, num_spaces
from llmos.openers import link_opener
from llmos.sched.accounts import Accounts
from llmos.sched.batch import BatchLimits
from llmos.sched.core import Core
from llmos.sched.fair import TokenFair
from llmos.sched.memory_options import MemoryOptions
from llmos.sched.policy import FirstComeFirstServed, ResidencyPolicy
from llmos.sched.preemption import PreemptionCosts
from llmos.sched.rerank import Rerank


class Start(Protocol):
    """Starts a supervised child and waits until it is ready."""

    def __call__(
        self, name: str, run: Runnable, stop: Callable[[], None] | None = None
    ) -> Awaitable[None]: ...


@attrs.define(eq=False)
class Devices:
    """Adds devices to a system, each with its Core and the host of its driver.

    Args:
        config: of all of them.
        kind: "cpu", "cuda" or "sim".
        system: gets them.
        start: starts what they are made of.
        on_progress: told how far loads are.
        open_link: for tests: makes the opener of each device's line, given its name.
    """

    config: Config
    kind: str
    system: System
    start: Start
    on_progress: Callable[[str, Progress], None] | None = None
    open_link: Callable[[str], OpenLink] | None = None

    def opener_of(self, name: str, model_path: str) -> OpenLink:
        """What opens the line of a device to a driver that can load this model."""
        if self.open_link is not None:
            return self.open_link(name)
        return link_opener(self.config, self.kind, name, model_path)

    async def add(self, name: str, load: Load) -> None:
        """Add a device that will load a model. Its host is to be started yet. A checkpoint."""
        await self._add(name, load, self.opener_of(name, load.path))

    async def add_empty(self, name: str) -> DriverHost:
        """Add a device without a model. A checkpoint."""
        host = await self._add(name, None, None)
        await self.start(f"host {name}", host.run)
        return host

    async def _add(self, name: str, load: Load | None, opener: OpenLink | None) -> DriverHost:
        core = self.system.cores[name] = make_core(self.config, name, self.system)
        core.after_results = self.system.flush_replies
        host = self.system.hosts[name] = DriverHost(
            core,
            opener,
            load,
            self.config.step_timeout_seconds,
            self.system.events,
            self.on_progress,
            encodes=encodes(name),
        )
        await self.start(f"core {name}", core.run, core.stop)
        return host


def make_core(config: Config, name: str, system: System) -> Core:
    """A device's run queue, limits, memory and policy, from the configuration."""
    limits = BatchLimits(
        max_step_tokens=config.max_step_tokens,
        max_rows=config.max_running,
        max_chunk_tokens=config.max_chunk_tokens or config.max_step_tokens,
        target_seconds=config.step_target_ms / 1e3,
        steps_in_flight=config.steps_in_flight,
    )
    keeps_prefixes = config.prefix_cache and not encodes(name)  # an encoder keeps nothing of a text
    memory = MemoryOptions(
        max_spaces=num_spaces(config),
        prefix_cache=keeps_prefixes,
        cache_policy=config.cache_policy,
        max_pin_seconds=config.pin_max_seconds if keeps_prefixes else 0.0,
        max_pinned_bytes=None if config.pin_mib is None else config.pin_mib << 20,
        mapping=config.mapping,
        swap_reuse=config.swap_reuse,
    )
    return Core(
        name,
        make_policy(config, system.accounts),
        system.accounts,
        limits,
        config.max_running,
        memory,
        system.on_exit,
        system.on_pause,
        partial(system.events.record, level="warning"),
        PreemptionCosts(config.preempt, config.switching, config.max_step_tokens),
    )


def make_policy(config: Config, accounts: Accounts) -> ResidencyPolicy:
    """The policy that the configuration names; each device has its own, and all have one set of accounts."""
    match config.policy:
        case "fair":
            return TokenFair(accounts, config.fair_quantum)
        case "rerank":
            return Rerank(config.rerank_steps, config.rerank_seed, config.rerank_pattern)
        case _:
            return FirstComeFirstServed()
