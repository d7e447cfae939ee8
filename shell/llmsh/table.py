"""The command table: one declaration of each command, the source of its parsing, manual and completion."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

import attrs

from shell.llmsh.errors import UsageError
from shell.llmsh.options import Arguments, Option, parse_arguments, suggest

S = TypeVar("S")
"""The shell that carries commands out; the table knows nothing of it."""

FOREIGN = {  # what other shells and programs call it
    "quit": "exit", "logout": "exit", "q": "exit", "?": "help", "ls": "ps", "htop": "top", "df": "free",
    "nvidia-smi": "lsdev", "pkill": "kill", "less": "head", "more": "head", "renice": "nice", "env": "set",
    "printenv": "set", "generate": "run", "ask": "run", "journalctl": "dmesg", "id": "whoami",
    "reboot": "shutdown", "halt": "shutdown", "poweroff": "shutdown", "cls": "clear", "reset": "clear",
}  # fmt: skip

HELP = Option(("--help", "-h"), "show this help")
JSON = Option(("--json",), "print JSON instead of a table")


@attrs.frozen
class Command(Generic[S]):
    """One row of the table.

    Attributes:
        name: what is typed.
        summary: what it does, in one line without a period.
        function: carries it out, and returns the exit code.
        operands: the usage line after the options.
        details: what else there is to know, as one paragraph.
        options: what it accepts beside --help.
        min_operands, max_operands: how many there may be; None: any number.
        completes: what each operand names: "pid", "job", "model", "image", "variable", "command", "file",
            or "" for what nobody can know. The last goes for those that follow, too.
        can_background: `&` may follow it.
        reads_input: takes what is piped into it.
        is_alone: needs the terminal, and so can be no part of a pipe.
        is_prefix: its first operand is another command, whose options are not its own.
        examples: command lines, each with what it does.
    """

    name: str
    summary: str = attrs.field(kw_only=True)
    function: Callable[[S, Arguments], Awaitable[int]] = attrs.field(kw_only=True)
    operands: str = attrs.field(default="", kw_only=True)
    details: str = attrs.field(default="", kw_only=True)
    options: tuple[Option, ...] = attrs.field(default=(), kw_only=True)
    min_operands: int = attrs.field(default=0, kw_only=True)
    max_operands: int | None = attrs.field(default=0, kw_only=True)
    completes: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    can_background: bool = attrs.field(default=False, kw_only=True)
    reads_input: bool = attrs.field(default=False, kw_only=True)
    is_alone: bool = attrs.field(default=False, kw_only=True)
    is_prefix: bool = attrs.field(default=False, kw_only=True)
    examples: tuple[tuple[str, str], ...] = attrs.field(default=(), kw_only=True)

    @property
    def usage(self) -> str:
        """One line: how to call it."""
        parts = (self.name, "[options]" if self.options else "", self.operands)
        return " ".join(part for part in parts if part)

    @property
    def all_options(self) -> tuple[Option, ...]:
        """Its options and --help."""
        return (*self.options, HELP)

    def kind_of_operand(self, number: int) -> str:
        """What the operand of that number names, counted from 0; "" when nobody can know."""
        return self.completes[min(number, len(self.completes) - 1)] if self.completes else ""

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
    """All commands by name, in families, in the order in which help lists them."""

    def __init__(self, families: Mapping[str, Iterable[Command[S]]]) -> None:
        self.families = {title: tuple(commands) for title, commands in families.items()}
        self._commands = {
            command.name: command for commands in self.families.values() for command in commands
        }

    def __iter__(self) -> Iterator[Command[S]]:
        return iter(self._commands.values())

    def __contains__(self, name: object) -> bool:
        return name in self._commands

    def find(self, name: str) -> Command[S]:
        """Return the command of that name. Raises UsageError, with a suggestion."""
        command = self._commands.get(name)
        if command is None:
            meant = FOREIGN.get(name)
            hint = f": did you mean {meant!r}?" if meant in self else suggest(name, self._commands)
            raise UsageError(f"unknown command {name!r}{hint or '; help lists the commands'}")
        return command
