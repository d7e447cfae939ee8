"""Traffic of several tenants on one device, and what came of it: on the real driver, or on the virtual clock.

Processes are put straight into the run queue, as spawn would make them, so that tenants are names and the
same code drives both. What is measured is the kernel, its policy and the device.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import attrs
import msgspec
import trio

from llmos.boot import Ready, boot
from llmos.config import Config
from llmos.kernel.driver_host import OpenLink
from llmos.kernel.system import System
from llmos.proc.pcb import Process, Reader
from llmos.sched.accounts import weigh
from llmos.sched.core import Core
from llmos.sched.messages import Enqueue
from syscalls.sampling import Sampling

FIRST_ID = 300  # below are special tokens and single bytes


@attrs.frozen
class Arrival:
    """A request that will come."""

    at: float  # seconds from the start
    tenant: str
    prompt: int  # tokens
    output: int


@attrs.frozen
class Flood:
    """A tenant that keeps so many requests outstanding: whenever one ends the next one comes."""

    tenant: str
    num_outstanding: int
    prompt: int
    output: int
    lengths: tuple[tuple[int, int], ...] = ()  # of prompts and outputs, in turn; empty: those above


@attrs.frozen
class Traffic:
    """What comes to a device."""

    arrivals: tuple[Arrival, ...]
    seconds: float  # observed; what is unfinished then is cut off
    floods: tuple[Flood, ...] = ()
    weights: Mapping[str, float] = attrs.field(factory=dict)  # of tenants; others have 1

    def alone(self, *tenants: str) -> Traffic:
        """Only what these tenants send."""
        mine = tuple(arrival for arrival in self.arrivals if arrival.tenant in tenants)
        floods = tuple(flood for flood in self.floods if flood.tenant in tenants)
        return attrs.evolve(self, arrivals=mine, floods=floods)


@attrs.frozen
class Request:
    """A request and when its tokens came, in seconds from the start."""

    arrival: Arrival
    token_times: list[float] = attrs.field(factory=list)


@attrs.frozen
class Sample:
    """Counters at one moment; taken every second, or more often."""

    at: float
    service: Mapping[str, float]  # weighted tokens by tenant, up to now
    waiting: frozenset[str]  # tenants with a process in the queue


@attrs.frozen
class Outcome:
    """What a device made of its traffic."""

    traffic: Traffic
    requests: list[Request]
    samples: list[Sample]
    num_tokens: int  # of prompts that were computed and of output, each counted once
    num_preemptions: int

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return self.num_tokens / self.traffic.seconds


Policy = Literal["fair", "fcfs"]
Measure = Callable[[Policy, Traffic], Outcome]


async def observe(
    config: Config,
    device_kind: str,
    traffic: Traffic,
    sample_seconds: float,
    open_link: Callable[[str], OpenLink] | None = None,
) -> Outcome:
    """Boot, send the traffic, and watch. A checkpoint for as long as the traffic lasts.

    Args:
        config: of the kernel; socket and tenants' weights are set here.
        device_kind: "cpu" or "sim".
        traffic: what comes.
        sample_seconds: between samples.
        open_link: of a simulated device; see llmos.boot.
    """
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        weights = ",".join(f"{tenant}={weight}" for tenant, weight in traffic.weights.items())
        config = msgspec.structs.replace(
            config, listen="", socket=str(Path(folder) / "llmos.sock"), tenant_weights=weights
        )
        async with trio.open_nursery() as nursery:
            started: tuple[System, Ready] = await nursery.start(
                partial(boot, config, device_kind, open_link=open_link)
            )
            system, _ = started
            outcome = await _Player(system, traffic).play(sample_seconds)
            system.request_shutdown(0.0)
    return outcome


class _Player:
    """Sends the traffic of one run."""

    def __init__(self, system: System, traffic: Traffic) -> None:
        self._system, self._traffic = system, traffic
        self._core: Core
        (self._core,) = system.cores.values()
        self._began = trio.current_time()
        self._requests: list[Request] = []
        self._samples: list[Sample] = []
        self._is_over = False

    async def play(self, sample_seconds: float) -> Outcome:
        """Send everything at its time."""
        with trio.move_on_at(self._began + self._traffic.seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sample_every, sample_seconds)
                for flood in self._traffic.floods:
                    lengths = itertools.cycle(flood.lengths or [(flood.prompt, flood.output)])
                    for _ in range(flood.num_outstanding):
                        self._send_of(flood, lengths)
                for arrival in self._traffic.arrivals:
                    await trio.sleep_until(self._began + arrival.at)
                    self._send(arrival, lambda process: None)
        self._is_over = True
        statistics = self._core.statistics()
        accounts = [self._system.accounts.of(tenant) for tenant in self._tenants()]
        num_tokens = sum(account.num_prompt_tokens + account.num_output_tokens for account in accounts)
        return Outcome(self._traffic, self._requests, self._samples, num_tokens, statistics.num_preemptions)

    def _tenants(self) -> list[str]:
        return list(dict.fromkeys(request.arrival.tenant for request in self._requests))

    def _send_of(self, flood: Flood, lengths: Iterator[tuple[int, int]]) -> None:
        def send_next(ended: Process) -> None:
            if not self._is_over:
                self._send_of(flood, lengths)

        now = trio.current_time() - self._began
        self._send(Arrival(now, flood.tenant, *next(lengths)), send_next)

    def _send(self, arrival: Arrival, on_exit: Callable[[Process], None]) -> None:
        request = Request(arrival)
        self._requests.append(request)

        def note(process: Process) -> None:
            num_new = len(process.output) - len(request.token_times)
            request.token_times.extend([trio.current_time() - self._began] * num_new)
            if not process.turn_is_over:
                process.readers.append(Reader(len(process.output), note))

        process = self._make_process(arrival)
        process.readers.append(Reader(0, note))
        process.exit_callbacks += [on_exit, self._system.reap]
        self._system.enter(process)
        self._core.mailbox.send_nowait(Enqueue([process]))

    def _make_process(self, arrival: Arrival) -> Process:
        """A process as spawn would make it; no two share a prefix."""
        assert self._core.loaded is not None
        model = self._core.loaded.model
        (pid,) = self._system.table.new_pids(1)
        span = model.vocab_size - FIRST_ID
        prompt = [FIRST_ID + (pid * 7919 + i * (1 + pid % 101)) % span for i in range(arrival.prompt)]
        now = trio.current_time()
        return Process(
            pid=pid, tenant=arrival.tenant, session=None, model=model.name, device=self._core.name,
            sampling=Sampling(seed=pid), stop_tokens=frozenset(), spawned_at=now, turn_started_at=now,
            arrival=pid, tokens=prompt, turn_start=len(prompt), max_tokens=arrival.output,
            num_prompt_tokens=len(prompt), num_uncharged=len(prompt),
        )  # fmt: skip

    async def _sample_every(self, seconds: float) -> None:
        while True:
            accounts = [self._system.accounts.of(tenant) for tenant in self._tenants()]
            service = {a.tenant: weigh(a.num_prompt_tokens, a.num_output_tokens) for a in accounts}
            waiting = frozenset(account.tenant for account in accounts if account.num_waiting)
            self._samples.append(Sample(trio.current_time() - self._began, service, waiting))
            await trio.sleep(seconds)
