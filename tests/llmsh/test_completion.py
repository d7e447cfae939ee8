"""What Tab offers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell.llmsh.commands import TABLE
from shell.llmsh.completion import Candidate, complete, look_up_names
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate
from tests.scripted_kernel import open_scripted_kernel

NAMES = {
    "pid": ["12", "130"],
    "job": ["%1"],
    "model": ["base", "big model"],
    "image": ["old"],
    "variable": ["mood", "name"],
    "tenant": ["red", "blue"],
}


def look_up(kind: str) -> Sequence[Candidate]:
    """Stand for the kernel."""
    if kind.startswith("file "):
        return [Candidate(name) for name in ["out.txt"] if name.startswith(kind.removeprefix("file "))]
    return [Candidate(name) for name in NAMES[kind]]


def offer(text: str) -> list[str]:
    """The words that could stand at the end of a text."""
    return [candidate.text for candidate in complete(text, TABLE, look_up)[1]]


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("k", ["kill"]),
        ("ps; sta", ["stat"]),
        ("run hi & mod", ["models"]),
        ("kill ", ["12", "130"]),
        ("kill 13", ["130"]),
        ("nice 5 1", ["12", "130"]),
        ("fg ", ["%1"]),
        ("help shu", ["shutdown"]),
        ("nice ", []),
        ("fork 12 ", []),
        ("checkpoint ", ["12", "130"]),
        ("checkpoint 12 ", ["old"]),
        ("checkpoint --force 12 o", ["old"]),
        ("images --tenant r", ["red"]),
        ("images --tenant=", ["--tenant=red", "--tenant=blue"]),
        ("run --schema o", ["out.txt"]),
        ("run --schema=o", ["--schema=out.txt"]),
        ("ps | tee ", ["out.txt"]),
        ("man strac", ["strace"]),
        ("restore ", ["old"]),
        ("rm-image x o", ["old"]),
        ("run --max", ["--max-tokens"]),
        ("run -m ", ["base", "big model"]),
        ("run --model 'big", ["big model"]),
        ("run --seed ", []),
        ("run -- --max", []),
        ("run some te", []),
        ("dmesg --f", ["--follow"]),
        ("nonsense ", []),
        ("ps | k", ["kill"]),
        ("run hi > out", ["out.txt"]),
        ("run hi >> ", ["out.txt"]),
        ("cat < o", ["out.txt"]),
        ("run $mo", ["mood"]),
        ('run "in a ${m', ["mood"]),
        ("unset ", ["mood", "name"]),
    ],
)
def test_what_is_offered(text: str, offered: list[str]) -> None:
    """Commands first, then options, then the names that the command or option takes."""
    assert offer(text) == offered


@given(st.text("abkilrunps-'\"\\ ;|&#%1", max_size=20))
def test_offers_extend_what_was_typed(text: str) -> None:
    """Whatever the line, completion never fails, and every offer begins with the word at the cursor."""
    start, candidates = complete(text, TABLE, look_up)
    assert 0 <= start <= len(text)
    typed = text[start:]
    if typed.isalnum():
        assert all(candidate.text.startswith(typed) for candidate in candidates)


def test_all_commands_on_an_empty_line() -> None:
    """Tab on nothing lists everything."""
    assert offer("") == [command.name for command in TABLE]


async def test_names_come_from_the_kernel(tmp_path: Path) -> None:
    """Pids, jobs and models of now are offered; without a kernel there are none, and no error."""
    async with open_shell(tmp_path) as shell:
        assert await look_up_names(shell.shell, "pid") == []
        gate = Gate()
        async with open_scripted_kernel(tmp_path, gate):
            await shell.run("run --detach other; run mine &")
            pids = [candidate.text for candidate in await look_up_names(shell.shell, "pid")]
            assert pids == ["%1", "1", "2"]
            assert [c.text for c in await look_up_names(shell.shell, "job")] == ["%1", "2"]
            assert [c.text for c in await look_up_names(shell.shell, "model")] == ["scripted"]
        assert shell.errors == ""
