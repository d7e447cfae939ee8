"""What the page's scripts make of the stream, against what was encoded: in the browser itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from llmos.bench.server import Server, running_server
from shell.gateway.page_rows import COLUMNS, difference
from tests.system.browser import open_browser, open_page, wait_live

READ = """async messages => {
  const { state, apply } = await import('/ui/state.js');
  return messages.map(message => { apply(message);
    return structuredClone([...state.rows.values()].sort((a, b) => a.pid - b.pid)); });
}"""
APPLY = """async messages => { const { apply } = await import('/ui/state.js'); messages.forEach(apply); }"""
# Of each span of time: its seconds, the rate of tokens, and what tenants were served; output counts twice.
SHARES = """async () => { const { state } = await import('/ui/state.js');
  return state.shares.map(({ seconds, parts }, i) =>
    [seconds, state.rates[i].value, Object.fromEntries(parts)]); }"""
NUM_LOOKS = 100


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server on which nothing runs."""
    with running_server("--device", "sim") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the module."""
    with open_browser() as found:
        yield found


def random_rows(rng: random.Random) -> dict[int, tuple[Any, ...]]:
    """A few rows of few different values, so that looks have cells in common."""
    pids = rng.sample(range(1, 9), rng.randrange(7))
    return {pid: (pid, *(rng.randrange(3) for _ in COLUMNS[1:])) for pid in pids}


def make_messages(seed: int) -> tuple[list[dict[str, Any]], list[dict[int, tuple[Any, ...]]]]:
    """Looks as the sampler sends them, with the rows that each is about; now and then one was missed."""
    rng = random.Random(seed)
    before: dict[int, tuple[Any, ...]] = {}
    messages, looks = [], []
    for index in range(NUM_LOOKS):
        rows = random_rows(rng)
        is_whole = index == 0 or rng.random() < 0.1
        new, changed, gone = difference({} if is_whole else before, rows)
        message = {"uptime": 1e6 + index / 2, "new": new, "changed": changed, "gone": gone, "events": []}
        messages.append({**message, "whole": True} if is_whole else message)
        looks.append(rows)
        before = rows
    return messages, looks


def test_the_browser_makes_of_differences_the_rows_they_were_made_of(server: Server, browser: Any) -> None:
    """Every cell after every look; and of each row a history with a point for each look since it came."""
    messages, looks = make_messages(seed=1)
    with open_page(browser, server.url) as page:
        wait_live(page)
        found = page.evaluate(READ, messages)
    num_seen: dict[int, int] = {}
    for rows, read in zip(looks, found, strict=True):
        assert [[row[name] for name in COLUMNS] for row in read] == [list(rows[pid]) for pid in sorted(rows)]
        num_seen = {pid: num_seen.get(pid, 0) + 1 for pid in rows}
        assert [len(row["points"]) for row in read] == [num_seen[pid] for pid in sorted(rows)]
        assert all(row["rate"] >= 0 for row in read)


def test_a_kernel_that_was_started_anew_is_no_sequel(server: Server, browser: Any) -> None:
    """Its clock begins again: pids mean others now, so no history and no rate is carried over."""
    row = [1, "bob", "decode", "", "m", 0, 5]
    looks = [
        {
            "uptime": 1e6,
            "new": [[*row, 100, 0, 0]],
            "whole": True,
            "history": [[1e6 - 4, [["bob", 1, 5, 70], ["ann", 1, 9, 9]]], [1e6 - 1, [["bob", 1, 5, 100]]]],
        },
        {"uptime": 1e6 + 1, "new": [], "changed": {"output": [1, 110]}, "shares": [["bob", 1, 5, 110]]},
        {"uptime": 2.0, "new": [[*row, 400, 0, 0]], "whole": True, "history": [[2.0, [["bob", 1, 5, 400]]]]},
        {"uptime": 3.0, "new": [], "changed": {"output": [1, 403]}, "shares": [["bob", 1, 5, 403]]},
    ]
    messages = [{"changed": {}, "gone": [], "events": [], **look} for look in looks]
    with open_page(browser, server.url) as page:
        wait_live(page)
        page.evaluate(APPLY, messages[:2])
        told = page.evaluate(SHARES)
        found = page.evaluate(READ, messages)
        told_anew = page.evaluate(SHARES)
    assert told == [[3, 10, {"bob": 60}], [2, 5, {"bob": 20}]]  # what was before the page, and what came then
    assert told_anew == [[1, 3, {"bob": 6}]]
    assert [look[0]["rate"] for look in found] == [0, 10, 0, 3]
    assert [len(look[0]["points"]) for look in found] == [1, 2, 1, 2]
