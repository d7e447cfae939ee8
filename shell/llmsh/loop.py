"""The shell: takes lines, runs their commands, and survives whatever they do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from shell.llmsh.connection import Connection
from shell.llmsh.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    HINTS,
    CommandError,
    NoKernel,
    UsageError,
)
from shell.llmsh.jobs import Job, JobTable
from shell.llmsh.options import Arguments
from shell.llmsh.parser import Incomplete, ParseError, Pipeline, parse
from shell.llmsh.render import Screen
from shell.llmsh.table import CommandTable, explain
from shell.llmsh.terminal import MAIN_PROMPT, EndOfInput, LineAborted, Terminal, echoes_interrupt
from shell.llmsh.text import TextModels
from syscalls.client import Client, ConnectionLost
from syscalls.errno import SyscallError
from syscalls.system import Model


@attrs.define(eq=False)
class Shell:
    """What every command works on.

    Attributes:
        table: the commands.
        connection: the session with the kernel.
        terminal: where lines come from.
        screen: where output goes.
        nursery: tasks that outlive a command: watchers of background jobs.
        wants_json: print every listing as JSON.
        status: exit code of the last command.
        is_exiting: `exit` was given.
        was_warned: `exit` was given while jobs ran.
        foreground: the job whose output is being shown.
        was_suspended: Ctrl-Z, not Ctrl-C, took that job out of the foreground.
    """

    table: CommandTable[Shell]
    connection: Connection
    terminal: Terminal
    screen: Screen
    nursery: trio.Nursery
    wants_json: bool = False
    jobs: JobTable = attrs.field(factory=JobTable)
    texts: TextModels = attrs.field(factory=TextModels)
    status: int = 0
    is_exiting: bool = False
    was_warned: bool = False
    foreground: Job | None = None
    was_suspended: bool = False
    _session: Client | None = None
    _notices: list[str] = attrs.field(factory=list)  # held back while a command runs
    _is_reading: bool = False
    _scopes: list[trio.CancelScope] = attrs.field(factory=list)  # what Ctrl-C ends, innermost last

    # --- lines ---------------------------------------------------------------------------------------------

    async def run_terminal(self) -> int:
        """Run lines from the terminal until it ends or `exit`. Returns the last exit code."""
        text = ""
        while not self.is_exiting:
            try:
                text += await self._read_line()
                await self._run_lines(text)
            except LineAborted:
                pass
            except EndOfInput:
                await self.run_text(text or "exit")  # an open quotation: says so
                if not self.terminal.is_interactive:
                    break
            except Incomplete:
                text += "\n"
                continue
            text = ""
            if self.status == EXIT_INTERRUPTED and not self.terminal.is_interactive:
                break
        return self.status

    async def _read_line(self) -> str:
        for notice in self._notices:
            self.screen.line(notice)
        self._notices.clear()
        self._is_reading = True
        try:
            return await self.terminal.read_line(MAIN_PROMPT)
        finally:
            self._is_reading = False

    def notify(self, text: str) -> None:
        """Tell a person what no command asked for: at once at the prompt, else before the next one."""
        if not self.terminal.is_interactive:
            return
        if self._is_reading:
            self.screen.line(text)
        else:
            self._notices.append(text)

    async def run_text(self, text: str) -> int:
        """Run a script; it is parsed before its first command runs. Returns the last exit code."""
        try:
            await self._run_lines(text)
        except Incomplete as error:
            self.fail(error, EXIT_USAGE)
        return self.status

    async def _run_lines(self, text: str) -> None:
        try:
            pipelines = parse(text)
        except Incomplete:
            raise
        except ParseError as error:
            self.fail(error, EXIT_USAGE)
            return
        for pipeline in pipelines:
            await self.run_pipeline(pipeline)
            if self.is_exiting or self.status == EXIT_INTERRUPTED:
                return

    async def run_pipeline(self, pipeline: Pipeline) -> None:
        """Run one command to its end, whatever that is, and set `status`."""
        (simple,) = pipeline.commands
        name = simple.name
        self.was_warned = self.was_warned and name == "exit"
        try:
            command = self.table.find(name)
            arguments = command.parse(simple.arguments)
            if pipeline.is_background and not command.can_background:
                raise UsageError("cannot run in the background; only 'run' can")
            arguments = attrs.evolve(arguments, source=pipeline.source, is_background=pipeline.is_background)
            if arguments["help"]:
                self.screen.line(explain(command))
                self.status = 0
                return
            with self.interruptible() as scope:
                self.status = await command.function(self, arguments)
            if scope.cancelled_caught:
                self.show_interrupt()
                self.status = EXIT_INTERRUPTED
        except CommandError as error:
            prefix = "llmsh" if isinstance(error, NoKernel) or name not in self._names() else name
            self.fail(f"{prefix}: {error}", error.code)
        except SyscallError as error:
            hint = HINTS.get(error.errno)
            self.fail(f"{name}: {error}" + (f"; {hint}" if hint else ""), EXIT_ERROR)
        except ConnectionLost as error:
            self.connection.drop()
            self.fail(f"{name}: {error} ({self.connection.socket_path})", NoKernel.code)
        except BrokenPipeError:
            self.is_exiting = True
            self.status = EXIT_BROKEN_PIPE
        except Exception:  # a fault of ours must not take the shell's other processes along
            self.fail(f"{name}: internal error\n{traceback.format_exc()}", EXIT_ERROR)

    def fail(self, message: object, status: int) -> None:
        """Report a failure."""
        self.screen.error(str(message))
        self.status = status

    def _names(self) -> set[str]:
        return {command.name for command in self.table}

    # --- interrupts ----------------------------------------------------------------------------------------

    @contextmanager
    def interruptible(self) -> Iterator[trio.CancelScope]:
        """Let Ctrl-C cancel the block, and nothing around it."""
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                yield scope
            finally:
                self._scopes.pop()

    def interrupt(self) -> None:
        """Ctrl-C: cancel the innermost interruptible block. Does nothing at the prompt."""
        if self._scopes:
            self.was_suspended = False
            self._scopes[-1].cancel()

    def suspend(self) -> None:
        """Ctrl-Z: stop the foreground job and return to the prompt. Does nothing without one."""
        if self._scopes and self.foreground is not None:
            self.was_suspended = True
            self._scopes[-1].cancel()

    def show_interrupt(self) -> None:
        """Leave the line in which ^C stands, or write it where the terminal does not."""
        if self.terminal.is_interactive and echoes_interrupt():
            self.screen.write("\n")
        else:
            self.screen.line("^Z" if self.was_suspended else "^C")

    # --- the kernel ----------------------------------------------------------------------------------------

    async def client(self) -> Client:
        """Return the session with the kernel. Jobs of an earlier one ended with it. Raises NoKernel."""
        client = await self.connection.client()
        if client is not self._session:
            self._session = client
            self.jobs.clear()  # another kernel may give their pids to other processes
        return client

    async def find_model(self, client: Client, name: str | None) -> Model:
        """Return a served model; None names the default. Raises CommandError."""
        models = await client.models()
        for model in models:
            if name in (None, model.name):
                return model
        if not models:
            raise CommandError("the kernel serves no model yet; 'lsdev' shows what its devices do")
        served = ", ".join(model.name for model in models)
        raise CommandError(f"no model {name!r}; served: {served}")

    def is_json(self, arguments: Arguments) -> bool:
        """True when this listing is wanted as JSON."""
        return self.wants_json or bool(arguments["json"])
