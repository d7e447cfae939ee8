"""What is written about commands, all of it made of their declarations: help, man, and the pages in docs/.

`python -m shell.llmsh.write_manual` writes docs/llmsh.md.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import TypeVar

from shell.llmsh.overview import SECTIONS, SUMMARY
from shell.llmsh.table import Command, CommandTable

S = TypeVar("S")

PAGE_COLUMNS = 80  # on a wide terminal, too: longer lines are hard to read
MIN_COLUMNS = 20
INDENT = "       "  # as far as man pages do


def explain(command: Command[S], columns: int = PAGE_COLUMNS) -> str:
    """Return a command's help page: how to call it, and what there is to know."""
    text = f"{command.summary}. {command.details}".rstrip()
    lines = [f"usage: {command.usage}", "", *_fill(text, columns), "", "options:"]
    lines += _list_pairs([(option.synopsis, option.help) for option in command.all_options], columns, "  ")
    lines += ["", "examples:"]
    for line, what in command.examples:
        lines += [f"  {line}", *_fill(what, columns, "      ")]
    return "\n".join(lines)


def summarize(table: CommandTable[S], columns: int = PAGE_COLUMNS) -> str:
    """Return the list of commands with their summaries."""
    lines = []
    width = max(len(command.name) for command in table)
    for title, commands in table.families.items():
        lines.append(title)
        pairs = [(command.name, command.summary) for command in commands]
        lines += [*_list_pairs(pairs, columns, "  ", width), ""]
    hint = "'help COMMAND' and 'man COMMAND' say more, 'man' tells of lines, pipes, variables, jobs and keys."
    return "\n".join([*lines, *_fill(hint, columns)])


def write_man(command: Command[S], table: CommandTable[S], columns: int = PAGE_COLUMNS) -> str:
    """Return a command's page in the manual."""
    text = f"{command.summary}. {command.details}".rstrip()
    lines = [
        "NAME",
        *_fill(f"{command.name} - {command.summary[0].lower()}{command.summary[1:]}", columns, INDENT),
        "",
        "SYNOPSIS",
        f"{INDENT}{command.usage}",
        "",
        "DESCRIPTION",
        *_fill(text, columns, INDENT),
    ]
    for note in describe_nature(command):
        lines += ["", *_fill(note, columns, INDENT)]
    lines += ["", "OPTIONS"]
    for option in command.all_options:
        lines += [f"{INDENT}{option.synopsis}", *_fill(option.help, columns, INDENT * 2)]
    lines += ["", "EXAMPLES"]
    for line, what in command.examples:
        lines += [f"{INDENT}{line}", *_fill(what, columns, INDENT * 2)]
    if others := see_also(command, table):
        lines += ["", "SEE ALSO", *_fill(", ".join(others), columns, INDENT)]
    return "\n".join(lines)


def write_overview(columns: int = PAGE_COLUMNS) -> str:
    """Return the manual's page about the shell itself."""
    lines = ["NAME", *_fill(f"llmsh - {SUMMARY}", columns, INDENT)]
    for title, paragraphs in SECTIONS.items():
        lines += ["", title.upper()]
        for number, paragraph in enumerate(paragraphs):
            lines += [""] * (number > 0) + _fill(paragraph.replace("`", "'"), columns, INDENT)
    return "\n".join(lines)


def describe_nature(command: Command[S]) -> list[str]:
    """Say how a command goes with the shell's pipes and jobs, where that is not as with most."""
    notes = []
    if command.reads_input:
        notes.append("Takes what is piped into it, or a file after '<'.")
    if command.is_alone:
        notes.append("Needs the terminal, and can be no part of a pipe.")
    if command.can_background:
        notes.append("May run in the background, with & after it.")
    return notes


def see_also(command: Command[S], table: CommandTable[S]) -> list[str]:
    """Return the other commands that a command's own page speaks of, in quotes or in examples."""
    quoted = re.findall(r"'([a-z-]+)\b", f"{command.summary} {command.details}")
    used = [
        word for line, _ in command.examples for word in re.findall(r"(?:^|[|;&] *|\$\()([a-z-]+)\b", line)
    ]
    found = {name for name in (*quoted, *used) if name in table and name != command.name}
    return [other.name for other in table if other.name in found]


# --- pages -----------------------------------------------------------------------------------------------


def write_page(table: CommandTable[S]) -> str:
    """Return docs/llmsh.md."""
    lines = [
        "# llmsh, the shell",
        "",
        "<!-- Written by `python -m shell.llmsh.write_manual > docs/llmsh.md`; do not edit. -->",
        "",
        *_fill_page(f"`llmsh` is {SUMMARY}. The same text is in the shell: `man`, `man COMMAND`."),
        "",
        *write_family_table(table, "").splitlines(),
    ]
    for title, paragraphs in SECTIONS.items():
        lines += ["", "", f"## {title}"]
        for paragraph in paragraphs:
            lines += ["", *_fill_page(paragraph)]
    for title, commands in table.families.items():
        lines += ["", "", f"## Commands: {title[0].lower()}{title[1:]}"]
        for command in commands:
            lines += ["", *_write_command(command)]
    return "\n".join(lines) + "\n"


def write_family_table(table: CommandTable[S], page: str) -> str:
    """Return all commands by family, each a link to its place in a page; "": the page that it stands in."""
    rows = [
        f"| {title} | {', '.join(f'[`{each.name}`]({page}#{each.name})' for each in commands)} |"
        for title, commands in table.families.items()
    ]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _write_command(command: Command[S]) -> Iterator[str]:
    yield f"### {command.name}"
    yield ""
    yield f"`{command.usage}`"
    yield ""
    notes = " ".join(describe_nature(command))
    yield from _fill_page(_escape(f"{command.summary}. {command.details}".rstrip() + f" {notes}".rstrip()))
    if command.options:
        yield from ("", "| option | |", "| --- | --- |")
        for option in command.options:
            yield f"| `{option.synopsis}` | {_escape(option.help)} |"
    yield ""
    yield "```"
    width = max(len(line) for line, _ in command.examples)
    for line, what in command.examples:
        yield f"{line:<{width}}    # {what}"
    yield "```"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_").replace("*", "\\*")


def _fill_page(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def _fill(text: str, columns: int, indent: str = "") -> list[str]:
    width = max(MIN_COLUMNS + len(indent), min(columns, PAGE_COLUMNS))
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _list_pairs(pairs: list[tuple[str, str]], columns: int, indent: str, width: int = 0) -> list[str]:
    """Lay out names with their meanings beside them; below them where the terminal is narrow."""
    width = width or max(len(name) for name, _ in pairs)
    hanging = indent + " " * (width + 2)
    is_narrow = columns < len(hanging) + MIN_COLUMNS
    lines = []
    for name, meaning in pairs:
        if is_narrow:
            lines += [f"{indent}{name}", *_fill(meaning, columns, indent * 3)]
        else:
            first, *rest = _fill(meaning, columns, hanging)
            lines += [f"{indent}{name:<{width}}  {first.lstrip()}", *rest]
    return lines
