"""Followers of one session, asked by hand: each call once, in their order, and not too many in one frame."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from llmos.kernel import follower
from llmos.kernel import session as session_module
from llmos.kernel.follower import Followers
from llmos.kernel.outbox import FRAMES_AT_ONCE
from llmos.proc.pcb import Process
from syscalls.codec import FrameSplitter, Outputs, Reply, Welcome
from syscalls.errno import SyscallError
from syscalls.process import Follow
from syscalls.session import ClientSession
from syscalls.system import Ping
from tests.kernel.harness import RunningKernel, running_kernel, wait_until
from tests.kernel.test_follow import open_raw

NUM_TOKENS = 30
MUCH = 2**40


@asynccontextmanager
async def ended_process(tmp_path: Path) -> AsyncIterator[tuple[RunningKernel, Process]]:
    """A kernel with a process whose output is all there."""
    async with running_kernel(tmp_path) as kernel:
        (pid,) = (await kernel.client.spawn([5, 6, 7], max_tokens=NUM_TOKENS, ignore_eos=True)).pids
        process = kernel.system.table.get(pid)
        await wait_until(lambda: process.turn_is_over)
        yield kernel, process
        assert process.followers == []
        await kernel.client.wait(pid)


async def test_a_call_follows_once(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """A second follow under the id of one that goes on is refused; the first is told all."""
    async with ended_process(tmp_path) as (kernel, process):
        followers = Followers(kernel.system, lambda call_id, answer: None, lambda num_due: None)
        followers.begin(1, process, 0, NUM_TOKENS - 1)
        with pytest.raises(SyscallError, match="EINVAL: call 1 follows already"):
            followers.begin(1, process, 0, MUCH)
        assert (len(followers), len(process.followers)) == (1, 1)
        ((call_id, output),) = followers.take(9)
        assert (call_id, output.tokens) == (1, tuple(process.output[:-1]))
        followers.clear()


async def test_whoever_became_due_first_comes_first(
    autojump_clock: trio.abc.Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has more than an answer holds is due again behind the others."""
    monkeypatch.setattr(follower, "MAX_OUTPUT_TOKENS", 12)
    async with ended_process(tmp_path) as (kernel, process):
        followers = Followers(kernel.system, lambda call_id, answer: None, lambda num_due: None)
        for call_id in (7, 3, 5):
            followers.begin(call_id, process, 0, MUCH)
        told = []
        while followers.are_due:
            ((call_id, output),) = followers.take(1)
            told.append((call_id, len(output.tokens)))
        assert told == [(call_id, num_tokens) for num_tokens in (12, 12, 6) for call_id in (7, 3, 5)]
        assert len(followers) == 0


async def test_so_many_are_due_in_order(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """Asked for two of five it takes those two, and leaves the others where they were."""
    async with ended_process(tmp_path) as (kernel, process):
        nums_due: list[int] = []
        followers = Followers(kernel.system, lambda call_id, answer: None, nums_due.append)
        for call_id in (4, 2, 9, 1, 3):
            followers.begin(call_id, process, 0, MUCH)
        assert nums_due == [1, 2, 3, 4, 5]
        taken = [[call_id for call_id, _ in followers.take(2)] for _ in range(3)]
        assert taken == [[4, 2], [9, 1], [3]]


async def test_a_frame_holds_so_many_outputs(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """More processes than that have news when a client reads on: they come in several frames."""
    num_samples = 2 * FRAMES_AT_ONCE + 8
    async with running_kernel(tmp_path) as kernel:
        stream = await trio.open_unix_socket(kernel.socket_path)
        async with stream:
            await stream.send_all((session := ClientSession()).encode_hello("raw"))
            while session.welcome is None:
                session.receive(await stream.receive_some(1 << 16))
            spawned = await kernel.client.spawn([5, 6, 7], max_tokens=400, num_samples=num_samples)
            for pid in spawned.pids:
                await stream.send_all(session.encode_call(Follow(pid, MUCH))[1])
            processes = [kernel.system.table.get(pid) for pid in spawned.pids]
            await wait_until(lambda: all(process.followers for process in processes))
            owner = processes[0].followers[0].__self__.owner  # type: ignore[attr-defined]
            kernel_end = owner.reply.__self__.stream.stream
            kernel_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 10)
            await wait_until(lambda: all(process.turn_is_over for process in processes))
            assert owner.are_due
            splitter, nums_outputs, num_ends = FrameSplitter(), [], 0
            while num_ends < num_samples:
                for payload in splitter.feed(await stream.receive_some(1 << 16)):
                    match msgspec.msgpack.decode(payload, type=Welcome | Reply | Outputs):
                        case Outputs(outputs):
                            nums_outputs.append(len(outputs))
                            num_ends += sum(output.end is not None for _, output in outputs)
                        case Reply(_, output):
                            num_ends += output.end is not None
            assert max(nums_outputs) == FRAMES_AT_ONCE
        for pid in spawned.pids:
            await kernel.client.wait(pid)


async def test_nothing_is_gathered_over_the_bound(
    autojump_clock: trio.abc.Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While as many bytes wait as may, followers keep what is due; with room again it is sent."""
    async with ended_process(tmp_path) as (kernel, process), open_raw(kernel) as raw:
        with monkeypatch.context() as patch:
            patch.setattr(session_module, "MAX_GATHERED_BYTES", 0)
            call_id = await raw.post(Follow(process.pid, MUCH))
            for _ in range(3):
                await raw.call(Ping())
            assert raw.answers[call_id] == []
        await raw.call(Ping())
        while raw.last(call_id) is None:
            await raw.receive()
        assert raw.tokens(call_id) == tuple(process.output)
