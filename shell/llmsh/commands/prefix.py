"""time and watch: commands that run another one; history: lines typed before; clear."""

from __future__ import annotations

import itertools

import attrs
import trio

from shell.llmsh.commands.generation import read_count
from shell.llmsh.commands.top import read_interval
from shell.llmsh.errors import UsageError
from shell.llmsh.execute import Stage, run_command
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.render import format_seconds
from shell.llmsh.table import JSON, Command
from syscalls.process import Usage

WATCH_SECONDS = 2.0
CLEAR = "\x1b[H\x1b[2J"


def _inner(shell: Shell, arguments: Arguments) -> Stage:
    """The command that is run, its arguments parsed. Raises UsageError."""
    name, *words = arguments.operands
    command = shell.table.find(name)
    if command.is_alone and shell.pipe_job is not None:
        raise UsageError(f"{name} needs the terminal, and can be no part of a pipe")
    if shell.input is not None and not command.reads_input:
        raise UsageError(f"{name} takes no input")
    return Stage(command, attrs.evolve(command.parse(words), source=arguments.source))


def describe_usage(seconds: float, usages: list[Usage]) -> str:
    """What a command took, in a line."""
    parts = [format_seconds(seconds)]
    if usages:
        num_output = sum(usage.num_output_tokens for usage in usages)
        num_prompt = sum(usage.num_prompt_tokens for usage in usages)
        num_cached = sum(usage.num_cached_tokens for usage in usages)
        running = sum(usage.running_seconds for usage in usages)
        parts.append(f"{len(usages)} process" + ("es" if len(usages) > 1 else ""))
        parts.append(f"{num_prompt} prompt tokens ({num_cached} cached)")
        parts.append(
            f"{num_output} output tokens" + (f", {num_output / running:.1f}/s each" if running else "")
        )
        first = [usage.first_token_seconds for usage in usages if usage.first_token_seconds is not None]
        if first:
            parts.append(f"first token after {format_seconds(min(first))}")
    return " · ".join(parts)


async def time(shell: Shell, arguments: Arguments) -> int:
    """`time`: run a command, then say what it took, also when it failed or Ctrl-C ended it."""
    stage = _inner(shell, arguments)
    usages: list[Usage] = []
    shell.meters.append(usages)
    began = trio.current_time()
    try:
        return await run_command(shell, stage)
    finally:
        # By identity: two lists that are equal are still two meters.
        shell.meters[:] = [meter for meter in shell.meters if meter is not usages]
        shell.screen.error(describe_usage(trio.current_time() - began, usages))


async def watch(shell: Shell, arguments: Arguments) -> int:
    """`watch`: run a command again and again."""
    stage = _inner(shell, arguments)
    seconds, num_times = arguments["delay"] or WATCH_SECONDS, arguments["times"]
    code = 0
    try:
        for number in itertools.count(1):
            if shell.screen.can_redraw:
                shell.screen.write_raw(CLEAR)
                shell.screen.note(
                    f"every {format_seconds(seconds)}: {' '.join(arguments.operands)}   (Ctrl-C ends)"
                )
            code = await run_command(shell, stage)
            if number == num_times:
                break
            await trio.sleep(seconds)
    except trio.Cancelled:
        shell.foreground.was_redrawn = shell.screen.can_redraw
        raise
    return code


async def clear(shell: Shell, arguments: Arguments) -> int:
    """`clear`: an empty screen."""
    if shell.screen.can_redraw:
        shell.screen.write_raw(CLEAR)
    return 0


async def history(shell: Shell, arguments: Arguments) -> int:
    """`history`: lines typed before, the newest last."""
    await trio.lowlevel.checkpoint()
    lines = shell.terminal.past_lines()
    first = max(0, len(lines) - (arguments["last"] or len(lines)))
    if shell.is_json(arguments):
        shell.screen.json(lines[first:])
        return 0
    for number, line in enumerate(lines[first:], first + 1):
        shell.screen.line(f"{number:5}  {line}")
    return 0


COMMANDS = (
    Command(
        "time",
        summary="Run a command and say what it took",
        operands="COMMAND …",
        details=(
            "Wall time, and of the processes that it waited for: tokens, their rate, and the time to the "
            "first one; on standard error."
        ),
        function=time,
        min_operands=1,
        max_operands=None,
        completes=("command",),
        reads_input=True,
        is_prefix=True,
        examples=(("time run 'Tell me a story'", "the story, and what it took"),),
    ),
    Command(
        "watch",
        summary="Run a command again and again, until Ctrl-C",
        operands="COMMAND …",
        details="On a terminal each run replaces what the last one showed.",
        function=watch,
        options=(
            Option(
                ("--delay", "-d"), "seconds between two runs (2)", metavar="SECONDS", convert=read_interval
            ),
            Option(("--times", "-n"), "end after so many runs", metavar="N", convert=read_count),
        ),
        min_operands=1,
        max_operands=None,
        completes=("command",),
        is_prefix=True,
        examples=(("watch -d 1 ps", "all processes, once a second"),),
    ),
    Command(
        "clear",
        summary="Empty the screen",
        details="Ctrl-L does the same at the prompt. Where the cursor cannot be moved, nothing happens.",
        function=clear,
        examples=(("clear", "what is on the screen goes"),),
    ),
    Command(
        "history",
        summary="List the lines typed before",
        details="Arrow up and Ctrl-R bring them back.",
        function=history,
        options=(Option(("--last", "-n"), "only so many", metavar="N", convert=read_count), JSON),
        examples=(("history -n 10", "the last ten"),),
    ),
)
