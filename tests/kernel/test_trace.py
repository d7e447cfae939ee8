"""Following one process: everything is told, nothing changes, and nobody waits for whoever watches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.sim import SimDriver
from llmos.cost import CostModel
from llmos.proc.entry import Entry
from llmos.proc.trace import MAX_TRACE_EVENTS, PATIENCE_SECONDS, Trace
from syscalls.client import Client, open_client
from syscalls.errno import SyscallError
from syscalls.process import MAX_TRACED, TraceEvent, TraceList
from tests.kernel.harness import running_kernel, wait_until
from tests.kernel.test_tenants import two_tenants

make_steady = partial(SimDriver, cost=CostModel(base=0.01))
CALLS = ("read", "kill", "stop", "cont", "nice", "fork", "wait", "write", "stat", "why")


async def follow(client: Client, pid: int, pause: float = 0.0) -> tuple[list[TraceEvent], int]:
    """Read a trace to its end; and how many events were lost."""
    events: list[TraceEvent] = []
    since = num_lost = 0
    while True:
        found = await client.trace(pid, since, follow=True)
        events += found.events
        num_lost += found.num_lost
        since = found.next
        if found.is_over:
            return events, num_lost
        await trio.sleep(pause)


async def test_a_traced_life(autojump_clock, tmp_path) -> None:
    """Chunks, pages, runs of tokens and calls come as they happen, in order, and add up."""
    async with running_kernel(tmp_path, make_steady, max_chunk_tokens=8) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(range(1, 33), max_tokens=100)).pids
        found: list[TraceEvent] = []

        async def watch() -> None:
            found.extend((await follow(client, pid))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(0.2)
            await client.stop(pid)
            await trio.sleep(1)
            await client.cont(pid)
            await client.nice(pid, 5)
            with pytest.raises(SyscallError):
                await client.nice(pid, 50)
            await wait_until(lambda: kernel.system.table.get(pid).ended_at is not None)
        assert [event.sequence for event in found] == list(range(1, len(found) + 1))
        kinds = [event.kind for event in found]
        assert kinds[:3] == ["spawned", "queued", "admitted"]
        assert kinds[-3:] == ["decoding", "unmapped", "ended"]
        prefill = [event for event in found if event.kind == "prefill"]  # the first may be several, by now
        assert (sum(e.count for e in prefill), sum(e.num_tokens for e in prefill)) == (4, 32)
        assert sum(event.num_tokens for event in found if event.kind == "decoding") == 100
        assert max(event.num_tokens for event in found if event.kind == "decoding") == 32
        pages = {kind: sum(e.count for e in found if e.kind == kind) for kind in ("mapped", "unmapped")}
        assert pages["mapped"] == pages["unmapped"] > 1
        assert [(e.kind, e.text, e.result) for e in found if e.kind in CALLS] == [
            ("stop", "", "done"), ("cont", "", "done"),
            ("nice", "nice=5", "done"), ("nice", "nice=50", "EINVAL"),
        ]  # fmt: skip
        assert kinds.index("stop") - kinds.index("stopped") == 1
        assert kernel.system.traces.live == {}
        await client.wait(pid)


@settings(max_examples=15)
@given(attach_at=st.floats(0, 0.6), leave_after=st.floats(0, 0.6), num_tokens=st.integers(1, 50))
def test_watching_changes_nothing(
    attach_at: float, leave_after: float, num_tokens: int, tmp_path_factory
) -> None:
    """Whenever somebody begins and stops to watch, `why` tells the same as when nobody does."""

    async def live(folder: Path, *, is_watched: bool) -> list[tuple[object, ...]]:
        async with running_kernel(folder, make_steady, max_chunk_tokens=8) as kernel:
            client = kernel.client
            (pid,) = (await client.spawn(range(1, 20), max_tokens=num_tokens)).pids
            await trio.sleep(attach_at)
            if is_watched:
                await client.trace(pid)
                await trio.sleep(leave_after)
                if (process := kernel.system.traces.live.get(pid)) is not None:
                    process.trace.on_forgotten()
            await wait_until(lambda: kernel.system.table.get(pid).ended_at is not None)
            info = await client.why(pid)
            await client.wait(pid)
            return [
                (e.kind, e.count, e.num_tokens, round(e.at, 6), round(e.seconds, 6)) for e in info.entries
            ]

    def run(*, is_watched: bool) -> list[tuple[object, ...]]:
        folder = tmp_path_factory.mktemp("watched")
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(partial(live, folder, is_watched=is_watched), clock=clock)

    assert run(is_watched=True) == run(is_watched=False)


async def test_the_end_comes_in_one_reply(autojump_clock, tmp_path) -> None:
    """Whoever waits for an event is told of an end as a whole: last tokens, memory, answered calls."""
    async with running_kernel(tmp_path, make_steady) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(range(1, 9), max_tokens=10, auto_reap=True)).pids
        since = (await client.trace(pid)).next
        replies: list[TraceList] = []

        async def watch() -> None:
            while not (replies and replies[-1].is_over):
                replies.append(await client.trace(pid, replies[-1].next if replies else since, follow=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(0.08)
            async with open_client(kernel.socket_path, name="reader") as reader:
                offset = 0
                async for output in reader.stream(pid):
                    offset += len(output.tokens)
        assert offset == 10
        last = [(event.kind, event.result) for event in replies[-1].events]
        assert last == [("decoding", ""), ("unmapped", ""), ("ended", ""), ("read", "1 token, length")]


async def test_whoever_reads_slowly_sees_the_end_of_one_that_was_reaped(autojump_clock, tmp_path) -> None:
    """A process of the gateway is reaped with its last token; its trace is read to the end all the same."""
    async with running_kernel(tmp_path, make_steady) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(range(1, 9), max_tokens=100, auto_reap=True)).pids
        since = (await client.trace(pid)).next
        async for _ in client.stream(pid):
            pass
        with pytest.raises(SyscallError, match="ESRCH"):
            await client.stat(pid)
        found = await client.trace(pid, since, follow=True)
        assert found.is_over
        assert sum(event.num_tokens for event in found.events if event.kind == "decoding") == 100


async def test_asking_again_after_a_trace_has_ended(autojump_clock, tmp_path) -> None:
    """Whoever followed a process and paused for too long goes on from there, and is told of a loss."""
    async with running_kernel(tmp_path, make_steady) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(range(1, 9), max_tokens=3000)).pids
        since = (await client.trace(pid)).next
        await trio.sleep(PATIENCE_SECONDS + 1)
        found = await client.trace(pid, since, follow=True)
        assert found.num_lost == 1
        assert {event.kind for event in found.events} <= {"mapped", "decoding"}
        assert (await client.trace(pid, 10_000, follow=True)).events  # what is not there yet is waited for
        await client.kill(pid)
        await client.wait(pid)


async def test_a_trace_ends_when_nobody_asks(autojump_clock, tmp_path) -> None:
    """Some seconds after the last question nothing is written any more; asking again begins anew."""
    async with running_kernel(tmp_path, make_steady) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(range(1, 9), max_tokens=3000)).pids
        await client.trace(pid)
        assert list(kernel.system.traces.live) == [pid]
        await trio.sleep(PATIENCE_SECONDS + 1)
        assert kernel.system.traces.live == {}
        assert kernel.system.table.get(pid).trace is None
        assert "decoding" in [event.kind for event in (await client.trace(pid)).events]
        await client.kill(pid)
        await client.wait(pid)


async def test_who_may_trace_what(autojump_clock, tmp_path) -> None:
    """Unknown processes, bad limits and too many traces are refused; the dead tell their story."""
    async with running_kernel(tmp_path, make_steady) as kernel:
        client = kernel.client
        with pytest.raises(SyscallError, match="ESRCH"):
            await client.trace(99)
        spawned = await client.spawn(range(1, 9), max_tokens=3000, num_samples=MAX_TRACED + 1)
        with pytest.raises(SyscallError, match="EINVAL: limit is 0"):
            await client.trace(spawned.pids[0], limit=0)
        with pytest.raises(SyscallError, match="EINVAL: since is -1"):
            await client.trace(spawned.pids[0], since=-1)
        for pid in spawned.pids[:-1]:
            await client.trace(pid)
        with pytest.raises(SyscallError, match=f"EAGAIN: {MAX_TRACED} processes"):
            await client.trace(spawned.pids[-1])
        for pid in spawned.pids:
            await client.kill(pid)
        events, num_lost = await follow(client, spawned.pids[-1])
        assert (events[0].kind, events[-1].kind, events[-1].text, num_lost) == (
            "spawned",
            "ended",
            "killed",
            0,
        )
        for pid in spawned.pids:
            await client.wait(pid)


async def test_others_see_nothing(autojump_clock, tmp_path) -> None:
    """Another tenant may follow a process neither in its life nor once it is reaped; an administrator may."""
    async with two_tenants(tmp_path, make_sim=make_steady) as pair:
        (pid,) = (await pair.alice.spawn(range(1, 9), max_tokens=20, auto_reap=True)).pids
        with pytest.raises(SyscallError, match="EPERM"):
            await pair.bob.trace(pid)
        since = (await pair.alice.trace(pid)).next
        async for _ in pair.alice.stream(pid):
            pass
        with pytest.raises(SyscallError, match="EPERM"):
            await pair.bob.trace(pid, since)
        assert (await pair.alice.trace(pid, since)).is_over
        assert (await pair.kernel.client.trace(pid, since)).is_over


@given(
    num_events=st.integers(0, 2 * MAX_TRACE_EVENTS + 5),
    asked=st.lists(st.tuples(st.integers(0, 2500), st.integers(1, 1024)), max_size=5),
)
def test_the_ring_is_the_end_of_a_list(num_events: int, asked: list[tuple[int, int]]) -> None:
    """What is asked for is a slice of all events; those that have left the ring are counted."""
    trace = Trace(began=0.0, asked_at=0.0, count_pages=lambda: (0, 0), on_forgotten=lambda: None)
    for number in range(num_events):
        trace.record(Entry("x", 0.0, 0.0, number))
    everything = list(range(1, num_events + 1))
    for sequence, limit in asked:
        kept = everything[-MAX_TRACE_EVENTS:]
        expected = [number for number in kept if number >= sequence][:limit]
        lost = [number for number in everything if number >= sequence and number not in set(kept)]
        events, num_lost = trace.since(sequence, limit)
        assert [event.sequence for event in events] == expected
        assert num_lost == len(lost)
