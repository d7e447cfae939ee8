"""What processes have said: cat, tail."""

from __future__ import annotations

from shell.llmsh.commands.filters import copy_input, show_last_lines
from shell.llmsh.commands.generation import read_count
from shell.llmsh.jobs import Sample
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.table import Command
from syscalls.client import Client

DEFAULT_TAIL_LINES = 10


async def show_output(shell: Shell, arguments: Arguments) -> int:
    """`cat`: the output of a process as far as there is any, or its input as it stands."""
    if not arguments.operands:
        await copy_input(shell)
        return 0
    client = await shell.client()
    sample, _ = await _read_so_far(shell, client, shell.jobs.resolve_one(arguments.operands[0]))
    shell.screen.write(sample.text)
    shell.screen.end_line()
    return 0


async def show_end_of_output(shell: Shell, arguments: Arguments) -> int:
    """`tail`: the last lines of a process's output; with -f, also those that are still to come."""
    num_lines = arguments["lines"] or DEFAULT_TAIL_LINES
    if not arguments.operands:
        await show_last_lines(shell, num_lines)
        return 0
    client = await shell.client()
    sample, is_over = await _read_so_far(shell, client, shell.jobs.resolve_one(arguments.operands[0]))
    lines = sample.text.splitlines(keepends=True)
    shell.screen.write("".join(lines[-num_lines:]))
    if arguments["follow"] and not is_over:
        async for output in client.stream(sample.pid, sample.offset):
            shell.screen.write(sample.take(output))
            await shell.screen.drain()
    shell.screen.end_line()
    return 0


async def _read_so_far(shell: Shell, client: Client, pid: int) -> tuple[Sample, bool]:
    """Read what a process has output until now, without waiting; and whether its turn is over."""
    info = await client.stat(pid)
    text = await shell.texts.open(await shell.find_model(client, info.model))
    sample = Sample(pid, info.seed, text.decoder())
    if info.usage.num_output_tokens or info.status is not None:  # else the read would block
        sample.take(await client.read(pid))
    return sample, sample.end is not None


COMMANDS = (
    Command(
        "cat",
        summary="Print a process's output as far as there is any",
        operands="[PID|%JOB]",
        details="It does not wait for more. Without a process, prints what is piped into it.",
        function=show_output,
        max_operands=1,
        completes=("pid",),
        reads_input=True,
        examples=(
            ("cat 7", "what process 7 has said so far"),
            ("cat 7 > answer.txt", "into a file"),
            ('cat < notes.txt | run "Summarise: {}"', "a file into a prompt"),
        ),
    ),
    Command(
        "tail",
        summary="Print the last lines of a process's output",
        operands="[PID|%JOB]",
        details=(
            "With -f, follow it to the end of its turn. Without a process, the last lines of what is piped "
            "into it."
        ),
        function=show_end_of_output,
        options=(
            Option(("--follow", "-f"), "follow the output as it comes"),
            Option(("--lines", "-n"), f"how many lines; {DEFAULT_TAIL_LINES} by default", "N", read_count),
        ),
        max_operands=1,
        completes=("pid",),
        reads_input=True,
        examples=(
            ("tail -f 7", "until process 7 ends"),
            ("tail -n 1 7", "its last line"),
        ),
    ),
)
