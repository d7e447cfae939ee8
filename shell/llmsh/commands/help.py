"""help and man: what is known of the commands, from their declarations."""

from __future__ import annotations

from typing import Any

from shell.llmsh.loop import Shell
from shell.llmsh.manual import explain, summarize, write_man, write_overview
from shell.llmsh.options import Arguments, Option
from shell.llmsh.table import Command

OVERVIEW = "llmsh"  # as a page of the manual


async def show_help(shell: Shell, arguments: Arguments) -> int:
    """`help`: the list of commands, or one command's page."""
    commands = [shell.table.find(name) for name in arguments.operands]
    if shell.is_json(arguments):
        shell.screen.json([describe(command) for command in commands or shell.table])
        return 0
    pages = [explain(command, shell.screen.columns) for command in commands]
    shell.screen.line("\n\n".join(pages) if pages else summarize(shell.table, shell.screen.columns))
    return 0


def describe(command: Command[Shell]) -> dict[str, Any]:
    """Return a command's declaration as JSON has it."""
    return {
        "name": command.name,
        "usage": command.usage,
        "summary": command.summary,
        "details": command.details,
        "options": [
            {"flags": option.flags, "value": option.metavar, "help": option.help}
            for option in command.all_options
        ],
        "examples": [{"line": line, "help": what} for line, what in command.examples],
    }


async def show_manual(shell: Shell, arguments: Arguments) -> int:
    """`man`: pages of the manual."""
    columns = shell.screen.columns
    names = arguments.operands or (OVERVIEW,)
    commands = [None if name == OVERVIEW else shell.table.find(name) for name in names]
    pages = [
        write_overview(columns) if command is None else write_man(command, shell.table, columns)
        for command in commands
    ]
    shell.screen.line("\n\n\n".join(pages))
    return 0


COMMANDS = (
    Command(
        "help",
        summary="List the commands, or explain some",
        operands="[COMMAND]...",
        details="'man' says more, in the form that manuals have.",
        function=show_help,
        options=(Option(("--json",), "print names, options and examples as JSON"),),
        max_operands=None,
        completes=("command",),
        examples=(("help", "all commands"), ("help run", "one of them")),
    ),
    Command(
        "man",
        summary="Show pages of the manual",
        operands="[COMMAND]...",
        details="Without a name, that about the shell: lines, pipes, variables, jobs, keys and exit codes.",
        function=show_manual,
        max_operands=None,
        completes=("command",),
        examples=(("man", "the shell"), ("man strace", "one command")),
    ),
)
