"""What if a grammar takes its time? Its processes wait, by name, and nobody else notices."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver
from llmos.device import Compiled
from llmos.sched import grammars as grammars_module
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus
from syscalls.sampling import Sampling
from tests.kernel.harness import MODEL, RunningKernel, running_kernel, wait_until
from tests.reading import read_all

PROMPT = tuple(range(1, 40))
LETTER = Sampling(temperature=1.0, seed=3, grammar='start: "a"')
BAD = Sampling(grammar='bad: "x"\nstart: bad')  # the simulated device says so, the library does not
SECONDS = 5.0


def slow(tmp_path: Path, **options: object):
    """A kernel whose device takes seconds to compile a grammar."""
    make = partial(SimDriver, compile_seconds=SECONDS, record=True)
    return running_kernel(tmp_path, make, **options)


async def state(kernel: RunningKernel, pid: int) -> str:
    """What ps prints."""
    return (await kernel.client.stat(pid)).state


def num_compiled(kernel: RunningKernel) -> int:
    """Grammars that the device has been asked for, since boot."""
    (core,) = kernel.system.cores.values()
    return core.residents.grammars._last_id


async def test_who_waits_is_named_and_neighbours_go_on(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Steps take as long as ever; the one that waits is not in them, and why says what for."""
    async with slow(tmp_path) as kernel:
        client = kernel.client
        (neighbour,) = (await client.spawn(PROMPT, max_tokens=300)).pids
        (pid,) = (await client.spawn(PROMPT, max_tokens=20, sampling=LETTER)).pids
        await trio.sleep(SECONDS / 2)
        assert await state(kernel, pid) == "BLOCKED(Grammar)"
        why = await client.why(pid)
        assert "for the device to compile its grammar" in why.verdict
        assert why.seconds["grammar"] == pytest.approx(SECONDS / 2, abs=0.1)
        info = await client.stat(neighbour)
        assert info.state == "RUNNING"
        assert info.usage.num_output_tokens > 100  # a step takes about 10 ms
        assert all(len(step.rows) == 1 for step in kernel.sim.steps if step.rows)
        tokens, end = await read_all(client, pid)
        assert tokens == MODEL.expected_tokens(PROMPT, 20, sampling=LETTER)
        assert end.reason == "length"
        for each in (neighbour, pid):
            await client.wait(each)
        # The next one with the same grammar waits for nothing.
        (pid,) = (await client.spawn(PROMPT, max_tokens=5, sampling=LETTER)).pids
        await read_all(client, pid)
        assert (await client.wait(pid)).usage.running_seconds < SECONDS / 10
        assert num_compiled(kernel) == 1


async def test_a_grammar_that_the_device_refuses(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Whoever follows it ends, by name: samples, a fork, one that is stopped; others do not."""
    async with slow(tmp_path) as kernel:
        client = kernel.client
        (other,) = (await client.spawn(PROMPT, max_tokens=20)).pids
        pids = list((await client.spawn(PROMPT, max_tokens=20, sampling=BAD, num_samples=3)).pids)
        pids += (await client.fork(pids[0], 1)).pids
        assert await state(kernel, pids[0]) == "BLOCKED(Grammar)"
        assert await state(kernel, pids[1]) == f"BLOCKED(Prefill({pids[0]}))"
        await client.stop(pids[0])
        assert await state(kernel, pids[1]) == "BLOCKED(Grammar)"
        for pid in pids:
            _, end = await read_all(client, pid)
            assert end == ExitStatus("error", message="grammar cannot be followed: it is bad")
            await client.wait(pid)
        assert (await read_all(client, other))[1].reason == "length"
        await client.wait(other)


async def test_stopped_killed_and_written_to_meanwhile(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Signals are obeyed at once; whoever goes on still waits, and then loses nothing."""
    async with slow(tmp_path) as kernel:
        client = kernel.client
        first, second = [
            (await client.spawn(PROMPT, max_tokens=20, sampling=LETTER)).pids[0] for _ in range(2)
        ]
        await client.stop(first)
        assert await state(kernel, first) == "STOPPED"
        await client.cont(first)
        assert await state(kernel, first) == "BLOCKED(Grammar)"
        await client.kill(second)
        assert (await client.wait(second)).status.reason == "killed"
        tokens, _ = await read_all(client, first)
        assert tokens == MODEL.expected_tokens(PROMPT, 20, sampling=LETTER)
        await client.wait(first)
        other = Sampling(grammar='start: "b"')
        (alone,) = (await client.spawn(PROMPT, max_tokens=20, sampling=other)).pids
        await client.kill(alone)  # nobody follows it any more when it is ready
        await client.wait(alone)
        await trio.sleep(2 * SECONDS)
        (core,) = kernel.system.cores.values()
        assert core.statistics().grammars == grammars_module.GrammarStatistics(0, 2, 0, 0)


@pytest.mark.parametrize("when", ["compiling", "running"])
async def test_the_driver_dies(tmp_path: Path, autojump_clock: trio.abc.Clock, when: str) -> None:
    """The next one compiles it again, and the tokens are the same."""
    async with slow(tmp_path) as kernel:
        client = kernel.client
        pids = (await client.spawn(PROMPT, max_tokens=40, sampling=LETTER, num_samples=2)).pids
        if when == "running":
            await wait_until(lambda: len(kernel.system.table.get(pids[1]).output) > 5)
        kernel.sim.kill()
        await wait_until(lambda: len(kernel.sims["sim:0"]) == 2)
        await trio.sleep(SECONDS / 2)
        assert await state(kernel, pids[0]) == "BLOCKED(Grammar)"
        for offset, pid in enumerate(pids):
            how = Sampling(temperature=1.0, seed=3 + offset, grammar=LETTER.grammar)
            assert (await read_all(client, pid))[0] == MODEL.expected_tokens(PROMPT, 40, sampling=how)
            await client.wait(pid)


async def test_restored_where_the_grammar_was_never_seen(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """An image brings its grammar along, in the middle of a turn and between turns."""
    async with slow(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(PROMPT, max_tokens=40, sampling=LETTER)).pids
        await wait_until(lambda: len(kernel.system.table.get(pid).output) > 5)
        await client.checkpoint(pid, "one")
        (chat,) = (await client.spawn(PROMPT, max_tokens=9, sampling=LETTER, interactive=True)).pids
        await read_all(client, chat)
        await client.checkpoint(chat, "chat")
        for each in (pid, chat):
            await client.kill(each)
            await client.wait(each)
    async with slow(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.restore("one")).pids
        assert await state(kernel, pid) == "BLOCKED(Grammar)"
        (chat,) = (await client.restore("chat")).pids
        assert await state(kernel, chat) == "BLOCKED(Input)"
        await client.write(chat, (7, 8), max_tokens=10)
        assert await state(kernel, chat) == "BLOCKED(Grammar)"
        assert (await read_all(client, pid))[0] == MODEL.expected_tokens(PROMPT, 40, sampling=LETTER)
        first = MODEL.expected_tokens(PROMPT, 9, sampling=LETTER)
        second = MODEL.expected_tokens((*PROMPT, *first, 7, 8), 10, sampling=LETTER)
        assert (await read_all(client, chat))[0] == first + second
        for each in (pid, chat):
            await client.kill(each)
            await client.wait(each)


async def test_a_device_that_answers_what_it_was_not_asked(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """It is not to be trusted: its driver is ended, and another one takes its place."""
    async with slow(tmp_path) as kernel:
        kernel.sim.outbox.post(trio.current_time(), Compiled(99, 0.0))
        await wait_until(lambda: len(kernel.sims["sim:0"]) == 2)
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=4)).pids
        await read_all(kernel.client, pid)
        await kernel.client.wait(pid)


async def test_too_many_characters_in_use(
    tmp_path: Path, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different grammars are bounded together; one more is refused by name, and welcome later."""
    monkeypatch.setattr(grammars_module, "MAX_GRAMMAR_CHARACTERS_IN_USE", 15)
    async with slow(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(PROMPT, max_tokens=4, sampling=LETTER)).pids
        with pytest.raises(SyscallError, match=r"grammar has 10 characters; .* have 10") as refused:
            await client.spawn(PROMPT, max_tokens=4, sampling=Sampling(grammar='start: "b"'))
        assert refused.value.errno is Errno.EAGAIN
        (same,) = (await client.spawn(PROMPT, max_tokens=4, sampling=LETTER)).pids
        for each in (pid, same):
            await read_all(client, each)
            await client.wait(each)
        (other,) = (await client.spawn(PROMPT, max_tokens=4, sampling=Sampling(grammar='start: "b"'))).pids
        await read_all(client, other)
        await client.wait(other)
