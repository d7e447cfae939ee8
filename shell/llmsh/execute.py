"""Runs pipelines: one command in the foreground, or several tasks joined by pipes."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

import attrs
import trio

from shell.llmsh.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    CommandError,
    Interrupted,
    NoKernel,
    UsageError,
)
from shell.llmsh.hints import explain_error
from shell.llmsh.jobs import PipeJob
from shell.llmsh.loop import Shell
from shell.llmsh.manual import explain
from shell.llmsh.options import Arguments
from shell.llmsh.pipe import FileInput, Input, TextPipe
from shell.llmsh.pipe_job import show_pipe
from shell.llmsh.syntax import Pipeline, SimpleCommand, Word
from shell.llmsh.table import Command
from shell.llmsh.variables import expand
from syscalls.client import ConnectionLost
from syscalls.errno import SyscallError


@attrs.define(eq=False)
class Stage:
    """One command of a pipeline, ready to run.

    Attributes:
        reads: the file it reads; "" for none.
        writes: the file that it writes; "" for none.
        appends: at the end of that, instead of replacing it.
    """

    command: Command[Shell]
    arguments: Arguments
    reads: str = ""
    writes: str = ""
    appends: bool = False
    source: Input | None = None
    sink: TextIO | TextPipe | None = None
    descriptor: int | None = None  # of the file that it reads


async def run_pipeline(shell: Shell, pipeline: Pipeline) -> int:
    """Run commands to their end, or start them in the background. Returns the exit code; reports failures."""
    name = "llmsh"
    try:
        if _is_assignment(pipeline):
            await _assign(shell, pipeline.commands[0].words)
            return 0
        stages = []
        for number, simple in enumerate(pipeline.commands):
            words = [await _expand(shell, word) for word in simple.words]
            name = words[0] if words[0] in shell.table else "llmsh"
            has_input = number > 0 or any(each.operator == "<" for each in simple.redirections)
            stages.append(await _prepare(shell, pipeline, simple, words, has_input=has_input))
        only = stages[0] if len(stages) == 1 else None
        if only is not None and not (only.reads or only.writes):
            if pipeline.is_background and not only.command.can_background:
                raise UsageError("cannot run in the background by itself; only 'run' and pipes can")
            return await _run_in_foreground(shell, only)
        return await _run_as_job(shell, pipeline, stages)
    except Interrupted:
        return Interrupted.code
    except CommandError as error:
        return _report(shell, name, error)


async def _expand(shell: Shell, word: Word) -> str:
    def look_up(name: str) -> str:
        if name == "?":
            return str(shell.status)
        if name == "!":
            if shell.jobs.newest_pid is None:
                raise UsageError("no process was started in the background, so '$!' names none")
            return str(shell.jobs.newest_pid)
        return shell.variables.get(name)

    return await expand(word, look_up, shell.capture)


def _is_assignment(pipeline: Pipeline) -> bool:
    """True for NAME=value …, and nothing else. Raises UsageError when a command follows."""
    words = pipeline.commands[0].words
    num_assigned = next((i for i, word in enumerate(words) if not word.assigns), len(words))
    if num_assigned and (num_assigned < len(words) or len(pipeline.commands) > 1 or pipeline.is_background):
        raise UsageError(f"{words[0].text}: a variable is set on a line of its own, or before ';'")
    return bool(num_assigned)


async def _assign(shell: Shell, words: Sequence[Word]) -> None:
    for word in words:
        text = await _expand(shell, word)
        shell.variables.set(word.assigns, text[len(word.assigns) + 1 :])


async def _prepare(
    shell: Shell, pipeline: Pipeline, simple: SimpleCommand, words: Sequence[str], *, has_input: bool
) -> Stage:
    """Parse one command's arguments and name its files; nothing runs yet. Raises CommandError."""
    command = shell.table.find(words[0])
    arguments = command.parse(words[1:])
    is_part = has_input or len(pipeline.commands) > 1 or bool(simple.redirections)
    if arguments["help"]:
        has_input = False
    elif command.is_alone and is_part:
        raise UsageError("needs the terminal, and can be no part of a pipe")
    elif has_input and not command.reads_input:
        readers = ", ".join(each.name for each in shell.table if each.reads_input)
        raise UsageError(f"takes no input; these do: {readers}")
    is_background = pipeline.is_background and len(pipeline.commands) == 1 and not simple.redirections
    arguments = attrs.evolve(arguments, source=pipeline.source, is_background=is_background)
    stage = Stage(command, arguments)
    for redirection in simple.redirections:
        path = await _expand(shell, redirection.target)
        if not path:
            raise UsageError(f"the file name after '{redirection.operator}' is empty")
        path = os.path.expanduser(path)  # noqa: ASYNC240  it looks at no disk
        if redirection.operator == "<":
            stage.reads = path
        else:
            stage.writes, stage.appends = path, redirection.operator == ">>"
    return stage


async def _run_in_foreground(shell: Shell, stage: Stage) -> int:
    with shell.foreground.interruptible() as scope:
        code = await run_command(shell, stage)
    if scope.cancelled_caught:
        shell.foreground.show_interrupt()
        return EXIT_INTERRUPTED
    return code


async def run_command(shell: Shell, stage: Stage) -> int:
    """Run one command to its end, whatever that is. Returns the exit code."""
    name = stage.command.name
    try:
        if stage.arguments["help"]:
            shell.screen.line(explain(stage.command, shell.screen.columns))
            return 0
        return await stage.command.function(shell, stage.arguments)
    except Interrupted:
        return Interrupted.code
    except CommandError as error:
        return _report(shell, name, error)
    except SyscallError as error:
        shell.screen.error(f"{name}: {await explain_error(shell, error, stage.arguments.operands)}")
    except ConnectionLost as error:
        shell.connection.drop()
        shell.screen.error(f"{name}: {error} ({shell.connection.socket_path})")
        return NoKernel.code
    except BrokenPipeError:
        shell.is_exiting = shell.pipe_job is None  # else only the next command has left
        return EXIT_BROKEN_PIPE
    except OSError as error:
        shell.screen.error(f"{name}: {error.filename or stage.writes or 'output'}: {error.strerror or error}")
    except Exception:  # a fault of ours must not take the shell's other processes along
        shell.screen.error(f"{name}: internal error\n{traceback.format_exc()}")
    return EXIT_ERROR


def _report(shell: Shell, name: str, error: CommandError) -> int:
    shell.screen.error(f"{'llmsh' if isinstance(error, NoKernel) else name}: {error}")
    return error.code


# --- pipes -----------------------------------------------------------------------------------------------


async def _run_as_job(shell: Shell, pipeline: Pipeline, stages: Sequence[Stage]) -> int:
    job = PipeJob(pipeline.source, TextPipe())
    _join(stages, job.output)
    shell.nursery.start_soon(_run_stages, shell, job, stages)
    if pipeline.is_background:
        shell.jobs.add(job)
        shell.screen.line(f"[{job.number}]")
        return 0
    with shell.foreground.interruptible() as scope:
        code = await show_pipe(shell, job)
    if scope.cancelled_caught:
        shell.foreground.show_interrupt()
        return EXIT_INTERRUPTED
    return code


def _join(stages: Sequence[Stage], output: TextPipe) -> None:
    """Open the files, and lay pipes between commands that have none. Raises CommandError."""
    try:
        for number, stage in enumerate(stages):
            if stage.reads:
                stage.descriptor = os.open(stage.reads, os.O_RDONLY | os.O_CLOEXEC)
                stage.source = FileInput(stage.descriptor)
            if stage.writes:
                stage.sink = open(stage.writes, "a" if stage.appends else "w", encoding="utf-8")  # noqa: SIM115
            elif number == len(stages) - 1:
                stage.sink = output
            else:
                stage.sink = TextPipe()
            if number + 1 < len(stages) and not stages[number + 1].reads:
                following = stages[number + 1]
                following.source = stage.sink if isinstance(stage.sink, TextPipe) else _nothing()
    except OSError as error:
        for stage in stages:
            _close(stage)
        raise CommandError(f"{error.filename}: {error.strerror}") from error


def _nothing() -> TextPipe:
    pipe = TextPipe()
    pipe.end()
    return pipe


def _close(stage: Stage) -> None:
    """Tell both neighbours that a command is over."""
    if stage.descriptor is not None:
        os.close(stage.descriptor)
        stage.descriptor = None
    if isinstance(stage.source, TextPipe):
        stage.source.leave()
    if isinstance(stage.sink, TextPipe):
        stage.sink.end()
    elif stage.sink is not None:
        # What it holds back could not be written, and that was said when it was to be.
        with suppress(OSError):
            stage.sink.close()


async def _run_stages(shell: Shell, job: PipeJob, stages: Sequence[Stage]) -> None:
    """Be the task of a job of several commands."""
    codes = [EXIT_INTERRUPTED] * len(stages)

    async def run_stage(number: int, stage: Stage) -> None:
        try:
            inner = shell.with_streams(stage.sink, stage.source, job)
            codes[number] = await run_command(inner, stage)
        finally:
            _close(stage)

    try:
        with job.scope:
            async with trio.open_nursery() as nursery:
                for number, stage in enumerate(stages):
                    nursery.start_soon(run_stage, number, stage)
    finally:
        job.output.end()
        job.status = join_codes(codes)
        job.done.set()
    if job.number and not job.is_foreground:
        shell.foreground.notify(f"[{job.number}] {job.outcome}  {job.command}")


def join_codes(codes: Sequence[int]) -> int:
    """Make one exit code of a pipeline's: the last that is not 0. That a reader has left is no failure."""
    failed = [code for code in codes[:-1] if code not in (0, EXIT_BROKEN_PIPE)]
    return codes[-1] or (failed[-1] if failed else 0)
