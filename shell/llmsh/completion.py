"""Completion by Tab: commands, options, and names that only the kernel knows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import trio

from shell.llmsh.errors import CommandError, UsageError
from shell.llmsh.loop import Shell
from shell.llmsh.options import OPTION_LIKE, Option
from shell.llmsh.parser import parse_partial
from shell.llmsh.table import Command, CommandTable
from syscalls.client import ConnectionLost
from syscalls.errno import SyscallError

PATIENCE_SECONDS = 0.5  # a person waits at the prompt while the kernel is asked


@attrs.frozen
class Candidate:
    """One word that could stand at the cursor."""

    text: str
    meaning: str = ""


Lookup = Callable[[str], Sequence[Candidate]]
"""From "pid", "job", "model", "image", "tenant", "variable" or "file PREFIX" to the names of now."""

OPEN_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)?$")
MAX_FILES = 200  # that are offered


def complete(text: str, table: CommandTable[Any], look_up: Lookup) -> tuple[int, list[Candidate]]:
    """Return where the word at the end of `text` begins, and what it could become."""
    partial = parse_partial(text)
    if (variable := OPEN_VARIABLE.search(text)) is not None:
        begun = variable.group(1) or ""
        found = [each for each in look_up("variable") if each.text.startswith(begun)]
        return len(text) - len(begun), found
    if partial.wants_file:
        return partial.start, list(look_up(f"file {partial.current}"))
    found = [
        candidate
        for candidate in _list_candidates(partial.words, partial.current, table, look_up)
        if candidate.text.startswith(partial.current)
    ]
    return partial.start, found


def _list_candidates(
    words: Sequence[str], current: str, table: CommandTable[Any], look_up: Lookup
) -> Iterable[Candidate]:
    if not words:
        return [Candidate(command.name, command.summary) for command in table]
    try:
        command = table.find(words[0])
    except UsageError:
        return []
    option = _option_that_wants_value(command, words)
    if option is not None:
        return _list_names(option.completes, current, look_up)
    flag, has_value, begun = current.partition("=")
    if has_value and (option := _find_option(command, flag)) is not None:
        found = _list_names(option.completes, begun, look_up)
        return [Candidate(f"{flag}={name.text}", name.meaning) for name in found]
    if current.startswith("-") and "--" not in words:
        return [Candidate(flag, option.help) for option in command.all_options for flag in option.flags]
    if command.is_prefix:  # what follows the other command's name is that command's
        names = {other.name for other in table}
        start = next((i for i, word in enumerate(words[1:], 1) if word in names), None)
        if start is not None:
            return _list_candidates(words[start:], current, table, look_up)
    kind = command.kind_of_operand(_count_operands(command, words[1:]))
    if kind == "command":
        return [Candidate(other.name, other.summary) for other in table]
    return _list_names(kind, current, look_up)


def _list_names(kind: str, begun: str, look_up: Lookup) -> Sequence[Candidate]:
    return look_up(f"file {begun}" if kind == "file" else kind) if kind else []


def _find_option(command: Command[Any], flag: str) -> Option | None:
    return next((each for each in command.all_options if each.metavar and flag in each.flags), None)


def _count_operands(command: Command[Any], words: Sequence[str]) -> int:
    """How many operands a command has in front of the word at the cursor."""
    num_operands, rest = 0, list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return num_operands + len(rest)
        if not OPTION_LIKE.fullmatch(word):
            num_operands += 1
        elif "=" not in word and _find_option(command, word) is not None:
            del rest[:1]  # its value
    return num_operands


def _option_that_wants_value(command: Command[Any], words: Sequence[str]) -> Option | None:
    return None if "--" in words else _find_option(command, words[-1])


async def look_up_names(shell: Shell, kind: str) -> list[Candidate]:
    """Ask the kernel for the names of a kind. Returns none when it does not answer soon."""
    if kind == "variable":
        return [Candidate(name) for name in shell.variables.names]
    if kind.startswith("file "):
        return await trio.to_thread.run_sync(list_files, kind.removeprefix("file "))
    candidates = (
        [Candidate(f"%{job.number}", job.command) for job in shell.jobs] if kind in ("pid", "job") else []
    )
    with trio.move_on_after(PATIENCE_SECONDS):
        try:
            client = await shell.client()
            if kind == "model":
                candidates += [Candidate(model.name, model.dtype) for model in await client.models()]
            elif kind == "image":
                candidates += [Candidate(image.name, image.label) for image in await client.images()]
            elif kind == "tenant":
                candidates += [Candidate(share.tenant) for share in await client.shares()]
            else:
                jobs_only = {pid for job in shell.jobs for pid in job.pids} if kind == "job" else None
                candidates += [
                    Candidate(str(info.pid), f"{info.state} {info.label}".strip())
                    for info in await client.ps()
                    if jobs_only is None or info.pid in jobs_only
                ]
        except (CommandError, ConnectionLost, SyscallError):
            pass  # completion never complains
    return candidates


def list_files(begun: str) -> list[Candidate]:
    """Return the files and folders whose path begins so; hidden ones only when asked for."""
    folder, name = os.path.split(begun)
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            found = [
                os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
                for entry in entries
                if entry.name.startswith(name) and (name or not entry.name.startswith("."))
            ]
    except OSError:
        return []
    return [Candidate(path) for path in sorted(found)[:MAX_FILES]]
