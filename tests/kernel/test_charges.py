"""Every token is charged once: whatever happens to processes, counters are what a model of ten lines says."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from drivers.sim import SimDriver
from llmos.device import Step, ToDriver
from llmos.ipc.credentials import PeerCredentials
from llmos.kernel import server
from llmos.proc.pcb import Process
from llmos.sched.accounts import RESIDENCY_WEIGHT, weigh
from llmos.sched.core import Core
from syscalls.client import Client, open_client
from syscalls.errno import Errno, SyscallError
from tests.kernel.harness import running_kernel


class Bookkeeper:
    """Watches the steps that go to a device, and adds up what is computed for the first time.

    A row that starts at a position finds all before it in memory: computed earlier, by whomever. So a process
    owes for input behind the furthest position that one of its rows, or its parent's before a fork, has
    touched or found; and for each token of output that is not its parent's. The last token of a turn may be
    computed with the input of the next: that one was output.
    """

    def __init__(self) -> None:
        self.pids: dict[int, Process] = {}
        self.known: dict[Process, int] = {}
        self.inherited: dict[Process, int] = {}
        self.turns: dict[Process, tuple[int, int, int]] = {}  # where input began and ended, output before it
        self.num_prompt_tokens: Counter[str] = Counter()

    def watch(self, core: Core, step: Step) -> None:
        """Account for a step that is about to be sent."""
        members = core.residents.queue.members
        for process in members.values():
            if process not in self.known:
                forked_from = self.pids.get(process.parent) if process.session is None else None
                self.pids[process.pid] = process
                self.known[process] = self.known.get(forked_from, 0)
                self.inherited[process] = len(process.output)
                if forked_from in self.turns:
                    self.turns[process] = self.turns[forked_from]
        owners = {process.space.asid: process for process in members.values() if process.space is not None}
        for row in step.rows:
            process = owners[row.asid]
            began, ended, num_output = self.turns.get(process, (0, process.turn_start, len(process.output)))
            if ended != process.turn_start:  # a new turn's input follows the last one's output
                began, num_output = ended + len(process.output) - num_output, len(process.output)
            self.turns[process] = (began, process.turn_start, num_output)
            found, end = max(self.known[process], row.start), row.start + row.num_tokens
            num_new = max(0, min(end, process.turn_start) - max(found, began))
            self.num_prompt_tokens[process.tenant] += num_new
            self.known[process] = max(found, end)

    @property
    def num_output_tokens(self) -> Counter[str]:
        """Tokens that were handed out, by tenant."""
        found: Counter[str] = Counter()
        for process, num_inherited in self.inherited.items():
            found[process.tenant] += len(process.output) - num_inherited
        return found


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("spawn"), st.integers(0, 1), st.integers(1, 60), st.integers(1, 60)),
        st.tuples(st.just("sample"), st.integers(0, 1), st.integers(1, 60), st.integers(1, 60)),
        st.tuples(st.just("chat"), st.integers(0, 1), st.integers(1, 60), st.integers(1, 60)),
        st.tuples(st.just("write"), st.integers(0, 1), st.integers(0, 30), st.integers(1, 20)),
        st.tuples(
            st.sampled_from(["fork", "kill", "stop", "cont"]),
            st.integers(0, 1), st.integers(0, 30), st.integers(1, 3),
        ),
        st.tuples(st.just("pause"), st.just(0), st.integers(1, 30), st.just(0)),
        st.tuples(st.just("crash"), st.just(0), st.just(0), st.just(0)),
    ),
    min_size=5,
    max_size=30,
)  # fmt: skip


async def disturb(client: Client, pids: list[int], name: str, first: int, second: int) -> None:
    """Carry one operation out; what the contract refuses is part of life."""
    prompt = tuple((first // 25 + i) % 500 for i in range(first))
    try:
        match name:
            case "spawn":
                pids += (await client.spawn(prompt, max_tokens=second)).pids
            case "sample":
                pids += (await client.spawn(prompt, max_tokens=second, num_samples=3)).pids
            case "chat":
                pids += (await client.spawn(prompt, max_tokens=second, interactive=True)).pids
            case _ if not pids:
                pass
            case "write":
                await client.write(pids[first % len(pids)], (7,) * second, max_tokens=9)
            case "fork":
                pids += (await client.fork(pids[first % len(pids)], second, detached=True)).pids
            case _:
                await getattr(client, name)(pids[first % len(pids)])
    except SyscallError as error:
        if error.errno is not Errno.EBUSY:
            raise


async def live(operations: list[tuple[str, int, int, int]], options: dict) -> None:
    """One history of two tenants on one device; then everybody is killed, and the books are compared."""
    bookkeeper = Bookkeeper()
    num_frames = options.pop("num_frames")

    class WatchedDriver(SimDriver):
        async def send(self, message: ToDriver) -> None:
            if isinstance(message, Step):
                (core,) = kernel.system.cores.values()
                bookkeeper.watch(core, message)
            await super().send(message)

    uids = itertools.count(1000)
    peers = mock.patch.object(
        server, "peer_credentials", side_effect=lambda sock: PeerCredentials(1, next(uids), 1)
    )
    with tempfile.TemporaryDirectory() as folder, peers:
        make = lambda name: WatchedDriver(name=name, num_frames=num_frames)  # noqa: E731
        async with (
            running_kernel(Path(folder), make, **options) as kernel,
            open_client(kernel.socket_path) as one,
            open_client(kernel.socket_path) as two,
        ):
            pids: tuple[list[int], list[int]] = [], []
            num_crashes = 0
            for name, who, first, second in operations:
                if name == "pause":
                    await trio.sleep(first / 100)
                elif name != "crash":
                    await disturb((one, two)[who], pids[who], name, first, second)
                elif num_crashes < 4:
                    num_crashes += 1
                    kernel.sim.kill()
            await trio.sleep(3)
            for client, owned in zip((one, two), pids, strict=True):
                for pid in owned:
                    await client.kill(pid)
                    await client.wait(pid)
            for tenant in ("uid:1001", "uid:1002"):
                account = kernel.system.accounts.of(tenant)
                assert account.num_prompt_tokens == bookkeeper.num_prompt_tokens[tenant]
                assert account.num_output_tokens == bookkeeper.num_output_tokens[tenant]
                served = weigh(account.num_prompt_tokens, account.num_output_tokens)
                assert account.counter >= served + RESIDENCY_WEIGHT * account.token_seconds - 1e-6


OPTIONS = st.fixed_dictionaries(
    {
        "num_frames": st.sampled_from([16, 20, 32]),
        "max_running": st.sampled_from([2, 5, 16]),
        "max_chunk_tokens": st.sampled_from([None, 1, 7]),
        "max_step_tokens": st.sampled_from([8, 64, 512]),
        "prefix_cache": st.booleans(),
        "policy": st.sampled_from(["fair", "fair", "fcfs", "rerank"]),
        "fair_quantum": st.sampled_from([10.0, 500.0]),
        "rerank_steps": st.just(7),
    }
)


@settings(max_examples=30)
@given(operations=OPERATIONS, options=OPTIONS)
def test_counters_are_what_a_model_computes(operations: list, options: dict) -> None:
    """Preemption, forks, samples, prefix hits, lost drivers, kills, turns: each token is charged once."""
    trio.run(live, operations, dict(options), clock=MockClock(autojump_threshold=0))
