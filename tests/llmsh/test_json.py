"""--json: whatever is a listing is one for programs, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shell.llmsh.commands import TABLE
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate
from tests.scripted_kernel import open_scripted_kernel

OPERANDS = {
    "stat": "1",
    "why": "1",
    "strace": "1",
    "maps": "1",
    "checkpoint": "1 new",
    "restore": "old",
    "wait": "2",
    "load": "builtin",
}
ONE_OBJECT_A_LINE = ("strace",)
ACTS = {  # what they print is text, or nothing
    "chat", "kill", "stop", "cont", "nice", "fork", "cat", "tail", "fg", "bg", "exit", "rm-image", "shutdown",
    "echo", "tee", "grep", "head", "unset", "time", "watch", "man", "clear",
    "unload", "sleep", "wake",
}  # fmt: skip


def test_only_what_acts_has_no_json() -> None:
    """Every other command has the option."""
    without = {command.name for command in TABLE if all(option.name != "json" for option in command.options)}
    assert without == ACTS


def read(name: str, text: str) -> Any:
    """What a command printed, decoded."""
    if name in ONE_OBJECT_A_LINE:
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


@pytest.mark.parametrize("name", sorted({command.name for command in TABLE} - ACTS))
async def test_every_listing_is_json_on_demand(tmp_path: Path, name: str) -> None:
    """With --json of the command or of the shell, the same whole value comes, and no table."""
    results = []
    for is_global in (False, True):
        gate = Gate()
        folder = tmp_path / str(is_global)
        folder.mkdir()
        kernel = open_scripted_kernel(folder, gate)
        async with kernel as made, open_shell(folder, wants_json=is_global) as shell:
            made.record("something happened")
            await shell.run("run one & run two & checkpoint 1 old; mood=good")
            await gate.reached.wait()
            if name in ("run", "wait"):
                gate.opened.set()
            flag = "" if is_global else "--json"
            operands = "three" if name == "run" else OPERANDS.get(name, "")
            source = "echo a b c | " if name == "wc" else ""
            code, out = await shell.run(f"{source}{name} {flag} {operands}")
            assert (code, shell.errors) == (0, "")
            results.append(read(name, out))
    assert _shape(results[0]) == _shape(results[1])
    assert results[0] or name == "history"  # of a shell that was typed nothing


def _shape(value: Any) -> Any:
    """A value without its numbers and texts, which are times and paths among other things."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return "text" if isinstance(value, str) else value if isinstance(value, bool | None) else 0
