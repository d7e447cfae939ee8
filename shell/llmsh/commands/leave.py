"""exit: the end of the shell, and of what lives with it."""

from __future__ import annotations

from shell.llmsh.errors import EXIT_ERROR, CommandError
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments
from shell.llmsh.table import Command


async def leave(shell: Shell, arguments: Arguments) -> int:
    """`exit`: leave the shell; its processes end with it, so the first try with any of them running warns."""
    (word,) = arguments.operands or (str(shell.status),)
    if not (word.isascii() and word.isdecimal() and int(word) < 256):
        raise CommandError(f"exit code {word!r} is not a number from 0 to 255")
    running = [job for job in shell.jobs if not job.has_ended]
    if running and shell.terminal.is_interactive and not shell.was_warned:
        shell.was_warned = True
        numbers = ", ".join(f"%{job.number}" for job in running)
        shell.screen.error(f"jobs are running: {numbers}; 'exit' again ends them")
        return EXIT_ERROR
    shell.is_exiting = True
    return int(word)


COMMANDS = (
    Command(
        "exit",
        summary="Leave the shell",
        operands="[CODE]",
        details=(
            "Its processes end with it, save those of 'run --detach'; with jobs running, the first 'exit' "
            "only warns. Ctrl-D does the same."
        ),
        function=leave,
        max_operands=1,
        examples=(
            ("exit", "with the exit code of the last command"),
            ("exit 3", "with another"),
        ),
    ),
)
