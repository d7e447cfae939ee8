"""Differences and rests of the live page against their plain meaning; what viewers share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
from hypothesis import given
from hypothesis import strategies as st

from shell.gateway.page_rows import COLUMNS, difference
from shell.gateway.page_sampler import MANY, PERIOD_SECONDS, Sampler, next_look
from shell.gateway.waits import Waits
from syscalls.client import open_client
from syscalls.process import ExitStatus
from tests.scripted_kernel import STOPPED_BY_MODEL, ScriptedProcess, open_scripted_kernel

ROWS = st.dictionaries(
    st.integers(0, 9), st.tuples(*[st.integers(0, 2)] * (len(COLUMNS) - 1)), max_size=10
).map(lambda found: {pid: (pid, *values) for pid, values in found.items()})


@given(before=ROWS, now=ROWS)
def test_a_difference_makes_of_before_what_is_now_and_says_nothing_twice(before: dict, now: dict) -> None:
    """Applied cell by cell it gives the rows now; what is equal is not sent."""
    new, changed, gone = difference(before, now)
    rows = {pid: list(row) for pid, row in before.items()}
    for pid in gone:
        del rows[pid]
    for column, pairs in changed.items():
        place = COLUMNS.index(column)
        for pid, value in zip(pairs[::2], pairs[1::2], strict=True):
            assert rows[pid][place] != value
            rows[pid][place] = value
    for row in new:
        assert row[0] not in rows
        rows[row[0]] = list(row)
    assert rows == {pid: list(row) for pid, row in now.items()}


@given(began=st.floats(0, 1e6), seconds=st.floats(0, 10), count=st.integers(0, 5000))
def test_looks_cost_no_more_with_more_processes_and_never_crowd_a_slow_kernel(
    began: float, seconds: float, count: int
) -> None:
    """Processes looked at in a second, and the share of the time that looking takes, are bounded."""
    period = next_look(began, began + seconds, count) - began
    assert period >= PERIOD_SECONDS - 1e-6
    assert count / period <= MANY / PERIOD_SECONDS + 1
    assert seconds / period <= 0.5 + 1e-6


async def say_five_tokens_a_second(process: ScriptedProcess) -> ExitStatus:
    """A program for the virtual clock."""
    for _ in range(1000):
        await process.emit(ord("x"))
        await trio.sleep(0.2)
    return STOPPED_BY_MODEL


def parse(data: bytes) -> dict[str, Any]:
    """Read an event."""
    found: dict[str, Any] = json.loads(data.removeprefix(b"data: "))
    return found


async def test_viewers_share_looks_and_one_that_missed_some_is_sent_everything(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Two that ask together get the same bytes of one look; whoever was away gets the whole state again."""
    async with (
        open_scripted_kernel(tmp_path, say_five_tokens_a_second) as kernel,
        open_client(tmp_path / "llmos.sock") as client,
    ):
        (pid,) = (await client.spawn([1, 2, 3])).pids
        sampler = Sampler(client, Waits())
        version, data = await sampler.next(0)
        whole = parse(data)
        assert whole["whole"]
        assert [row[0] for row in whole["new"]] == [pid]
        num_calls = len(kernel.calls)
        found: list[tuple[int, bytes]] = []

        async def watch() -> None:
            found.append(await sampler.next(version))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(watch)
        assert found[0] == found[1]
        assert sum(type(call).__name__ == "Ps" for call in kernel.calls[num_calls:]) == 1
        delta = parse(found[0][1])
        assert (delta["new"], delta["gone"]) == ([], [])
        assert delta["changed"]["output"][0] == pid
        assert set(delta["changed"]) == {"output"}
        for _ in range(2):
            latest, _data = await sampler.next(sampler.version)
        assert parse((await sampler.next(version))[1])["whole"]
        history = parse((await sampler.next(version))[1])["history"]
        assert [at for at, _rows in history] == sorted(at for at, _rows in history)
        assert len(history) > 1  # of looks before, for whoever opens the page now
        await trio.sleep(10 * PERIOD_SECONDS)  # nobody watches
        num_calls = len(kernel.calls)
        latest, _data = await sampler.next(0)
        num_looks = sum(type(call).__name__ == "Ps" for call in kernel.calls[num_calls:])
        assert num_looks == 1  # what is old is not told for new
        await client.kill(pid)
        assert parse((await sampler.next(latest))[1])["gone"] == [pid]
