"""The command table: name, usage, help and function of each command, one source for help and completion."""

from __future__ import annotations

import textwrap
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Generic, TypeVar

import attrs

from shell.llmsh.errors import UsageError
from shell.llmsh.options import Arguments, Option, parse_arguments, suggest

S = TypeVar("S")
"""The shell that carries commands out; the table knows nothing of it."""

HELP_COLUMNS = 78
HELP = Option(("--help", "-h"), "show this help")
JSON = Option(("--json",), "print JSON instead of a table")


@attrs.frozen
class Command(Generic[S]):
    """One row of the table.

    Attributes:
        name: what is typed.
        operands: the usage line after the options.
        help: one paragraph; its first sentence is the summary.
        function: carries it out, and returns the exit code.
        options: what it accepts beside --help.
        min_operands, max_operands: how many there may be; None: any number.
        completes: what its operands name: "pid", "job", "image", "command" or "".
        can_background: `&` may follow it.
        reads_input: takes what is piped into it.
        is_alone: needs the terminal, and so can be no part of a pipe.
        is_prefix: its first operand is another command, whose options are not its own.
        examples: command lines, each with what it does.
    """

    name: str
    operands: str
    help: str
    function: Callable[[S, Arguments], Awaitable[int]]
    options: tuple[Option, ...] = ()
    min_operands: int = 0
    max_operands: int | None = 0
    completes: str = ""
    can_background: bool = False
    reads_input: bool = False
    is_alone: bool = False
    is_prefix: bool = False
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def usage(self) -> str:
        """One line: how to call it."""
        parts = (self.name, "[options]" if self.options else "", self.operands)
        return " ".join(part for part in parts if part)

    @property
    def summary(self) -> str:
        """The first sentence of its help."""
        return self.help.split(". ")[0].rstrip(".")

    @property
    def all_options(self) -> tuple[Option, ...]:
        """Its options and --help."""
        return (*self.options, HELP)

    def parse(self, words: Iterable[str]) -> Arguments:
        """Parse its arguments. Raises UsageError."""
        arguments = parse_arguments(tuple(words), self.all_options, is_prefix=self.is_prefix)
        num_operands = len(arguments.operands)
        if arguments["help"]:
            return arguments
        if num_operands < self.min_operands:
            raise UsageError(f"an argument is missing; usage: {self.usage}")
        if self.max_operands is not None and num_operands > self.max_operands:
            extra = arguments.operands[self.max_operands]
            raise UsageError(f"argument {extra!r} is one too many; usage: {self.usage}")
        return arguments


class CommandTable(Generic[S]):
    """All commands by name, in the order in which help lists them."""

    def __init__(self, commands: Iterable[Command[S]]) -> None:
        self._commands = {command.name: command for command in commands}

    def __iter__(self) -> Iterator[Command[S]]:
        return iter(self._commands.values())

    def find(self, name: str) -> Command[S]:
        """Return the command of that name. Raises UsageError, with a suggestion."""
        command = self._commands.get(name)
        if command is None:
            raise UsageError(
                f"unknown command {name!r}{suggest(name, self._commands) or '; help lists the commands'}"
            )
        return command


def explain(command: Command[S]) -> str:
    """Return a command's help page."""
    lines = [f"usage: {command.usage}", "", textwrap.fill(command.help, HELP_COLUMNS), "", "options:"]
    width = max(len(option.synopsis) for option in command.all_options)
    lines += [f"  {option.synopsis:<{width}}  {option.help}" for option in command.all_options]
    if command.examples:
        lines += ["", "examples:"]
        for line, what in command.examples:
            lines += [f"  {line}", f"      {what}"]
    return "\n".join(lines)


def summarize(table: CommandTable[S]) -> str:
    """Return the list of commands with their summaries."""
    width = max(len(command.name) for command in table)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in table]
    return "\n".join([*lines, "", "'help COMMAND' says more. Text with blanks or ; | & > goes in quotes."])
