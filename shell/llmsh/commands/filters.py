"""What stands between pipes: tee, grep, head, wc; and echo, which begins one."""

from __future__ import annotations

import re
from collections import deque
from io import FileIO
from typing import Literal

from shell.llmsh.commands.generation import read_count
from shell.llmsh.errors import EXIT_ERROR, CommandError, UsageError
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.pipe import Input, LineReader
from shell.llmsh.table import JSON, Command

DEFAULT_HEAD_LINES = 10


def need_input(shell: Shell) -> Input:
    """Return what is piped into the command. Raises UsageError."""
    if shell.input is None:
        raise UsageError("there is no input: it stands after a '|', or before a '<' and a file")
    return shell.input


async def copy_input(shell: Shell) -> None:
    """Write the input as it comes."""
    source = need_input(shell)
    while text := await source.receive():
        shell.screen.write(text)
        await shell.screen.drain()


async def show_last_lines(shell: Shell, num_lines: int) -> None:
    """Write the last lines of the input, once it is over."""
    lines = LineReader(need_input(shell))
    last: deque[str] = deque(maxlen=num_lines)
    while line := await lines.read_line():
        last.append(line)
    shell.screen.write("".join(last))


async def echo(shell: Shell, arguments: Arguments) -> int:
    """`echo`: its arguments, as one line."""
    shell.screen.line(" ".join(arguments.operands))
    return 0


async def tee(shell: Shell, arguments: Arguments) -> int:
    """`tee`: the input, to a file too."""
    source = need_input(shell)
    mode: Literal["ab", "wb"] = "ab" if arguments["append"] else "wb"
    with open(arguments.operands[0], mode, buffering=0) as file:  # noqa: ASYNC230  as for '>'
        while text := await source.receive():
            _write_all(file, text.encode(errors="replace"))
            shell.screen.write(text)
            await shell.screen.drain()
    return 0


def _write_all(file: FileIO, data: bytes) -> None:
    """Write to a file that holds nothing back. Raises CommandError, which names it."""
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise CommandError(f"{file.name}: {error.strerror or error}") from error


async def grep(shell: Shell, arguments: Arguments) -> int:
    """`grep`: the lines of the input that match; 1 when there are none."""
    lines = LineReader(need_input(shell))
    try:
        pattern = re.compile(arguments.operands[0], re.IGNORECASE if arguments["ignore_case"] else 0)
    except re.error as error:
        raise UsageError(f"{arguments.operands[0]!r} is no regular expression: {error}") from None
    num_found = 0
    while line := await lines.read_line():
        if (pattern.search(line.rstrip("\n")) is None) == bool(arguments["invert"]):
            num_found += 1
            if not arguments["count"]:
                shell.screen.write(line)
                await shell.screen.drain()
    if arguments["count"]:
        shell.screen.line(str(num_found))
    return 0 if num_found else EXIT_ERROR


async def head(shell: Shell, arguments: Arguments) -> int:
    """`head`: the first lines of the input; whoever writes it then ends."""
    lines = LineReader(need_input(shell))
    num_lines = arguments["lines"] or DEFAULT_HEAD_LINES
    for operand in arguments.operands:  # as in head -3
        try:
            num_lines = read_count(operand.removeprefix("-"))
        except ValueError:
            raise UsageError(f"{operand!r} is no number of lines; usage: head -n N, or head -N") from None
        if arguments["lines"] is not None or operand == str(num_lines):
            raise UsageError(f"argument {operand!r} is one too many; usage: head -n N, or head -N")
    for _ in range(num_lines):
        if not (line := await lines.read_line()):
            break
        shell.screen.write(line)
        await shell.screen.drain()
    return 0


async def count_words(shell: Shell, arguments: Arguments) -> int:
    """`wc`: lines, words and characters of the input."""
    source = need_input(shell)
    num_lines = num_words = num_characters = 0
    is_inside = False  # of a word, at the end of what came so far
    while text := await source.receive():
        num_lines += text.count("\n")
        num_characters += len(text)
        num_words += len(text.split()) - (is_inside and not text[0].isspace())
        is_inside = not text[-1].isspace()
    if shell.is_json(arguments):
        shell.screen.json({"lines": num_lines, "words": num_words, "characters": num_characters})
    else:
        shell.screen.line(f"{num_lines} {num_words} {num_characters}")
    return 0


COMMANDS = (
    Command(
        "echo",
        summary="Write its arguments as one line",
        operands="[TEXT]...",
        details="Good for looking at variables, and for beginning a pipe.",
        function=echo,
        max_operands=None,
        examples=(("echo $?", "the exit code of the last command"),),
    ),
    Command(
        "tee",
        summary="Write what is piped into it to a file, and pass it on",
        operands="FILE",
        function=tee,
        options=(Option(("--append", "-a"), "at the end of the file, instead of replacing it"),),
        min_operands=1,
        max_operands=1,
        completes=("file",),
        reads_input=True,
        examples=(('run "Tell me a story" | tee story.txt | run "summarise: {}"', "keep what is between"),),
    ),
    Command(
        "grep",
        summary="Pass on the lines that match a regular expression",
        operands="PATTERN",
        details="The exit code is 1 when there are none.",
        function=grep,
        options=(
            Option(("--ignore-case", "-i"), "capital and small letters are alike"),
            Option(("--invert", "-v"), "the lines that do not match"),
            Option(("--count", "-c"), "only say how many"),
        ),
        min_operands=1,
        max_operands=1,
        reads_input=True,
        examples=(("ps | grep STOPPED", "processes that are stopped"),),
    ),
    Command(
        "head",
        summary="Pass on the first lines of what is piped into it",
        operands="[-N]",
        details="Then whatever writes it is ended, its processes too.",
        function=head,
        options=(Option(("--lines", "-n"), f"how many; {DEFAULT_HEAD_LINES} by default", "N", read_count),),
        max_operands=1,
        reads_input=True,
        examples=(('run "List all the animals you know" | head -n 3', "ends the process after three lines"),),
    ),
    Command(
        "wc",
        summary="Count lines, words and characters of what is piped into it",
        function=count_words,
        options=(JSON,),
        reads_input=True,
        examples=(("cat 7 | wc", "how much process 7 has said"),),
    ),
)
