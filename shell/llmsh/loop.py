"""The shell: takes lines, runs their commands, and survives whatever they do."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable

import attrs
import trio

from shell.llmsh.connection import Connection
from shell.llmsh.errors import EXIT_INTERRUPTED, EXIT_USAGE, CommandError, Interrupted
from shell.llmsh.foreground import Foreground
from shell.llmsh.jobs import JobTable, PipeJob
from shell.llmsh.options import Arguments, suggest
from shell.llmsh.parser import Incomplete, ParseError, parse
from shell.llmsh.pipe import Input
from shell.llmsh.render import Screen, Writable
from shell.llmsh.syntax import Pipeline
from shell.llmsh.table import CommandTable
from shell.llmsh.terminal import MAIN_PROMPT, EndOfInput, LineAborted, Terminal
from shell.llmsh.text import TextModels
from shell.llmsh.variables import Variables
from syscalls.client import Client
from syscalls.process import Usage
from syscalls.system import Model


@attrs.define(eq=False)
class Shell:
    """What every command works on. A command of a pipe gets a copy with a screen and an input of its own.

    Attributes:
        table: the commands.
        run_pipeline: runs commands that are joined by pipes, and returns the exit code.
        connection: the session with the kernel.
        terminal: where lines come from.
        screen: where output goes.
        nursery: tasks that outlive a command: watchers of background jobs, and pipes.
        wants_json: print every listing as JSON.
        input: what is piped into the command; None: nothing is.
        pipe_job: that the command is part of.
        meters: whoever adds up what processes used.
        status: exit code of the last command.
        is_exiting: `exit` was given.
        was_warned: `exit` was given while jobs ran.
    """

    table: CommandTable[Shell]
    run_pipeline: Callable[[Shell, Pipeline], Awaitable[int]]
    connection: Connection
    terminal: Terminal
    screen: Screen
    nursery: trio.Nursery
    wants_json: bool = False
    jobs: JobTable = attrs.field(factory=JobTable)
    texts: TextModels = attrs.field(factory=TextModels)
    variables: Variables = attrs.field(factory=Variables)
    foreground: Foreground = attrs.field(
        default=attrs.Factory(
            lambda self: Foreground(self.screen, self.terminal.is_interactive), takes_self=True
        )
    )
    input: Input | None = None
    pipe_job: PipeJob | None = None
    meters: list[list[Usage]] = attrs.field(factory=list)
    status: int = 0
    is_exiting: bool = False
    was_warned: bool = False

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
        self.foreground.show_notices()
        self.foreground.is_reading = True
        try:
            return await self.terminal.read_line(MAIN_PROMPT)
        finally:
            self.foreground.is_reading = False

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
            if (pipeline.condition == "&&" and self.status) or (
                pipeline.condition == "||" and not self.status
            ):
                continue
            self.was_warned = self.was_warned and pipeline.source.split()[0] == "exit"
            self.status = await self.run_pipeline(self, pipeline)
            if self.is_exiting or self.status == EXIT_INTERRUPTED:
                return

    async def capture(self, text: str) -> str:
        """Run commands and return what they wrote. Raises CommandError: they failed, or Ctrl-C ended them."""
        out = io.StringIO()
        inner = attrs.evolve(self, screen=self.screen.onto(out), input=None)
        status = await inner.run_text(text)
        if status == EXIT_INTERRUPTED:
            raise Interrupted
        if status:
            raise CommandError(f"the commands in $({text}) ended with exit code {status}")
        return out.getvalue()

    def fail(self, message: object, status: int) -> None:
        """Report a failure."""
        self.screen.error(str(message))
        self.status = status

    # --- what terminals and commands ask for ---------------------------------------------------------------

    def interrupt(self) -> None:
        """See Foreground.interrupt."""
        self.foreground.interrupt()

    def suspend(self) -> None:
        """See Foreground.suspend."""
        self.foreground.suspend()

    def with_streams(self, out: Writable | None, source: Input | None, job: PipeJob) -> Shell:
        """Return the shell for one command of a pipe; `out` None: this one's screen."""
        screen = self.screen if out is None else self.screen.onto(out)
        return attrs.evolve(self, screen=screen, input=source, pipe_job=job)

    async def client(self) -> Client:
        """Return the session with the kernel. Jobs of an earlier one ended with it. Raises NoKernel."""
        client = await self.connection.client()
        self.jobs.live_in(client)
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
        hint = suggest(str(name), [model.name for model in models])
        raise CommandError(f"no model {name!r}{hint or f'; served: {served}'}")

    def is_json(self, arguments: Arguments) -> bool:
        """True when this listing is wanted as JSON."""
        return self.wants_json or bool(arguments["json"])
