"""A shell in the test's own event loop, with a script for a person and strings for a screen."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from shell.llmsh.commands import TABLE
from shell.llmsh.connection import Connection
from shell.llmsh.execute import run_pipeline
from shell.llmsh.loop import Shell
from shell.llmsh.render import Screen
from shell.llmsh.table import CommandTable
from shell.llmsh.terminal import EndOfInput, LineAborted

CTRL_C = "\x03"


@attrs.define(eq=False)
class ScriptedTerminal:
    """Lines given beforehand or later by `send`; CTRL_C stands for the key, None for Ctrl-D."""

    is_interactive: bool = True
    prompts: list[str] = attrs.field(factory=list)  # every one that was shown
    past: list[str] = attrs.field(factory=list)  # lines that were read
    _lines: tuple[trio.MemorySendChannel[str | None], trio.MemoryReceiveChannel[str | None]] = attrs.field(
        factory=lambda: trio.open_memory_channel[str | None](100)
    )

    def send(self, *lines: str | None) -> None:
        """Type lines."""
        for line in lines:
            self._lines[0].send_nowait(line)

    async def read_line(self, prompt: str) -> str:
        """See Terminal."""
        self.prompts.append(prompt)
        line = await self._lines[1].receive()
        if line is None:
            raise EndOfInput
        if line == CTRL_C:
            raise LineAborted
        self.past.append(line)
        return line

    def past_lines(self) -> list[str]:
        """See Terminal."""
        return self.past


@attrs.define(eq=False)
class ShellUnderTest:
    """A shell, and all that it wrote."""

    shell: Shell
    terminal: ScriptedTerminal
    out: io.StringIO
    err: io.StringIO

    async def run(self, text: str) -> tuple[int, str]:
        """Run commands. Returns the exit code and what they wrote to standard output."""
        before = len(self.out.getvalue())
        code = await self.shell.run_text(text)
        return code, self.out.getvalue()[before:]

    @property
    def errors(self) -> str:
        """All of standard error."""
        return self.err.getvalue()


@asynccontextmanager
async def open_shell(
    folder: Path,
    lines: Sequence[str | None] = (),
    *,
    is_interactive: bool = False,
    wants_json: bool = False,
    table: CommandTable = TABLE,
) -> AsyncIterator[ShellUnderTest]:
    """Run a shell against the kernel in `folder` for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        terminal = ScriptedTerminal(is_interactive)
        terminal.send(*lines)
        out, err = io.StringIO(), io.StringIO()
        connection = Connection(folder / "llmos.sock", nursery)
        shell = Shell(table, run_pipeline, connection, terminal, Screen(out, err), nursery, wants_json)
        yield ShellUnderTest(shell, terminal, out, err)
        nursery.cancel_scope.cancel()
