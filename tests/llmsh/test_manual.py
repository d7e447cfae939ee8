"""help, man and docs/llmsh.md: all of each command, from one declaration, at any width."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell.llmsh.commands import TABLE
from shell.llmsh.loop import Shell
from shell.llmsh.manual import (
    MIN_COLUMNS,
    PAGE_COLUMNS,
    explain,
    see_also,
    summarize,
    write_family_table,
    write_man,
    write_overview,
    write_page,
)
from shell.llmsh.overview import SECTIONS
from shell.llmsh.parser import parse
from shell.llmsh.table import Command
from tests.llmsh.harness import open_shell

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", list(TABLE), ids=lambda command: command.name)
def test_declarations_are_whole(command: Command[Shell]) -> None:
    """Each command has a summary that fits a line, examples that it accepts, and options with a meaning."""
    assert command.summary[0].isupper()
    assert not command.summary.endswith(".")
    assert len(command.summary) <= PAGE_COLUMNS - len("  checkpoint  ")
    assert not command.details or command.details.endswith(".")
    assert command.examples
    for line, what in command.examples:
        simples = [simple for pipeline in parse(line) for simple in pipeline.commands]
        used = [simple for simple in simples if not simple.words[0].assigns]
        for simple in used:
            TABLE.find(simple.name).parse(simple.arguments)
        assert command.name in {each.name for each in used} or command.name == "set"  # assignments need none
        assert what[0].islower()
        assert not what.endswith(".")
    flags = [flag for option in command.all_options for flag in option.flags]
    assert len(flags) == len(set(flags))
    assert all(option.help for option in command.options)


def _words(text: str) -> list[str]:
    return re.sub(r"[`'|]", "", text).split()


def _has(page: str, text: str) -> bool:
    """Whether a page has a text, wherever its lines are broken."""
    return " ".join(_words(text)) in " ".join(_words(page))


@settings(max_examples=30)
@given(columns=st.integers(1, 300))
def test_pages_say_everything_at_any_width(columns: int) -> None:
    """Whatever the width, help and man have all of a declaration, and no prose is wider than the terminal."""
    listing = summarize(TABLE, columns)
    for command in TABLE:
        assert _has(listing, f"{command.name} {command.summary}")
        for page in (explain(command, columns), write_man(command, TABLE, columns)):
            for text in (command.usage, command.summary[1:], command.details):
                assert _has(page, text)
            for option in command.all_options:
                assert _has(page, f"{option.synopsis} {option.help}")
            for line, what in command.examples:
                assert line in page
                assert _has(page, what)
    prose = [*listing.splitlines(), *write_overview(columns).splitlines()]
    longest = max(len(word) for line in prose for word in line.split())
    assert max(map(len, prose)) <= max(min(columns, PAGE_COLUMNS), MIN_COLUMNS + 14, longest + 14)


def test_the_overview_has_every_section() -> None:
    """man without a name tells of lines, pipes, jobs, keys and exit codes."""
    page = write_overview()
    for title, paragraphs in SECTIONS.items():
        assert title.upper() in page
        assert all(_has(page, paragraph) for paragraph in paragraphs)


def test_see_also_names_what_a_page_speaks_of() -> None:
    """Commands in quotes and in examples are named; the command itself and mere words are not."""
    assert "cont" in see_also(TABLE.find("stop"), TABLE)
    assert see_also(TABLE.find("strace"), TABLE) == ["run", "why", "grep"]


def test_the_page_is_current() -> None:
    """docs/llmsh.md is what the generator writes; `make docs` writes it."""
    assert (ROOT / "docs" / "llmsh.md").read_text(encoding="utf-8") == write_page(TABLE)


def test_the_readme_lists_the_commands() -> None:
    """Its table is the one that the generator writes."""
    assert write_family_table(TABLE, "docs/llmsh.md") in (ROOT / "README.md").read_text(encoding="utf-8")


async def test_man_and_help_in_the_shell(tmp_path: Path) -> None:
    """Pages of one or several commands, a slip of the finger, the whole table as JSON; no kernel is asked."""
    async with open_shell(tmp_path) as shell:
        code, page = await shell.run("man strace")
        assert code == 0
        assert page.startswith("NAME\n       strace - follow a process as it lives\n")
        assert (await shell.run("man"))[1] == write_overview() + "\n"
        assert (await shell.run("man ps kill"))[1].count("SYNOPSIS") == 2
        assert (await shell.run("man stracee"))[0] == 2
        assert "man: unknown command 'stracee': did you mean 'strace'?" in shell.errors
        rows = json.loads((await shell.run("help --json"))[1])
        assert [row["name"] for row in rows] == [command.name for command in TABLE]
        (row,) = json.loads((await shell.run("help --json ps"))[1])
        assert row["options"][0] == {"flags": ["--all", "-a"], "value": "", "help": "everyone's processes"}
