"""run: from a prompt to a process and its output."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from shell.llmsh.commands.form import FORM_OPTIONS, read_form
from shell.llmsh.commands.generation import GENERATION_OPTIONS, make_spawn_options, read_count
from shell.llmsh.commands.jobs import end_job, join_pipe, report_ends, show_job, watch_job
from shell.llmsh.errors import CommandError, UsageError, first_leaf
from shell.llmsh.jobs import Job, Sample
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.pipe import Input, LineReader, read_all
from shell.llmsh.pipe_job import GRACE_SECONDS
from shell.llmsh.table import Command
from shell.llmsh.text import encode_prompt
from syscalls.client import Client
from syscalls.process import Spawned
from syscalls.text.tokenizer import TextModel

EACH_LINE_AHEAD = 16  # processes that run while an earlier one's output is shown
PLACE = "{}"


async def run(shell: Shell, arguments: Arguments) -> int:
    """`run`: spawn from a prompt, and from what is piped into it, and show the output."""
    prompt = " ".join(arguments.operands)
    if arguments["raw"] and arguments["chat"]:
        raise UsageError("--raw and --chat exclude each other")
    if arguments["each_line"] and (arguments["detach"] or arguments["json"]):
        raise UsageError("--each-line excludes --detach and --json")
    if shell.input is None and (arguments["each_line"] or not prompt):
        raise UsageError("a prompt or an input is missing: run PROMPT, run < FILE, or COMMAND | run PROMPT")
    options = make_spawn_options(arguments, label=prompt, grammar=await read_form(arguments))
    client = await shell.client()
    model = await shell.find_model(client, arguments["model"])
    text = await shell.texts.open(model)
    options["model"] = model.name
    options["num_samples"] = arguments["n"] or 1
    options["detached"] = bool(arguments["detach"])
    use_template = True if arguments["chat"] else False if arguments["raw"] else None

    async def spawn(prompt: str) -> Spawned:
        return await client.spawn(await encode_prompt(text, prompt, use_template=use_template), **options)

    if shell.input is not None and arguments["each_line"]:
        return await _run_each_line(shell, client, prompt, shell.input, spawn, text)
    if shell.input is not None:
        prompt = fill(prompt, await _read_input(shell.input))
    spawned = await spawn(prompt)
    if arguments["detach"]:
        shell.screen.line(" ".join(map(str, spawned.pids)))
        return 0
    job = make_job(spawned, text, arguments.source)
    if arguments.is_background:
        start_in_background(shell, client, job)
        return 0
    is_quiet = shell.is_json(arguments)
    waited = await show_job(shell, client, job, is_quiet=is_quiet)
    if is_quiet:
        rows = [
            {
                "pid": end.pid,
                "seed": sample.seed,
                "text": sample.text,
                "status": end.status,
                "usage": end.usage,
            }
            for sample, end in zip(job.samples, waited, strict=True)
        ]
        shell.screen.json(rows)
    return report_ends(shell, waited)


def fill(prompt: str, text: str) -> str:
    """Put an input where the prompt says {}; else after it, with an empty line between."""
    if PLACE in prompt:
        return prompt.replace(PLACE, text)
    return f"{prompt}\n\n{text}" if prompt else text


async def _read_input(source: Input) -> str:
    text = (await read_all(source)).rstrip("\n")
    if not text.strip():
        raise CommandError("the input is empty, so nothing was run")
    return text


async def _run_each_line(
    shell: Shell,
    client: Client,
    prompt: str,
    source: Input,
    spawn: Callable[[str], Awaitable[Spawned]],
    text: TextModel,
) -> int:
    """Start a process for each line as it comes; show their outputs in the order of the lines."""
    sender, receiver = trio.open_memory_channel[Job](EACH_LINE_AHEAD)
    unshown: list[Job] = []
    code = 0

    async def start() -> None:
        lines = LineReader(source)
        async with sender:
            while line := await lines.read_line():
                if line.strip():
                    job = make_job(await spawn(fill(prompt, line.rstrip("\n"))), text, line)
                    unshown.append(job)
                    if shell.pipe_job is not None:
                        await join_pipe(client, shell.pipe_job, job.pids)
                    await sender.send(job)

    try:
        async with trio.open_nursery() as nursery, receiver:
            nursery.start_soon(start)
            async for job in receiver:
                code = report_ends(shell, await show_job(shell, client, job, is_joined=True)) or code
                unshown.remove(job)
    except BaseExceptionGroup as group:
        raise first_leaf(group) from None
    finally:
        with trio.move_on_after(GRACE_SECONDS, shield=True):
            for job in unshown:
                await end_job(shell, client, job)
    return code


def make_job(spawned: Spawned, text: TextModel, command: str) -> Job:
    """Make a job of new processes."""
    samples = zip(spawned.pids, spawned.seeds, strict=True)
    return Job([Sample(pid, seed, text.decoder()) for pid, seed in samples], command)


def start_in_background(shell: Shell, client: Client, job: Job) -> None:
    """Put a job in the table, say its number, and wait for its end there."""
    shell.jobs.add(job)
    shell.screen.line(f"[{job.number}] {' '.join(map(str, job.pids))}")
    watch_job(shell, client, job)


COMMANDS = (
    Command(
        "run",
        summary="Run a prompt and show the output as it comes",
        operands="[PROMPT...] [&]",
        details=(
            "The prompt is rendered as a user's turn when the model has a chat template, and taken as it "
            "stands otherwise. Ctrl-C kills the process, Ctrl-Z stops it; with & at the end it runs in the "
            "background, and 'fg' or 'cat' shows its output. The exit code is 0 when the output ended by "
            "itself or by --max-tokens, 137 when it was killed, 1 after an error."
        ),
        function=run,
        options=(
            *GENERATION_OPTIONS,
            *FORM_OPTIONS,
            Option(("--n",), "draw N outputs; sample i uses seed + i", "N", read_count),
            Option(("--raw",), "no chat template"),
            Option(("--chat",), "insist on the chat template"),
            Option(("--detach",), "print the pid and return; the process outlives the shell"),
            Option(("--each-line",), "one process for each line of the input, as it comes"),
            Option(("--json",), "print text, status and usage as JSON at the end"),
        ),
        max_operands=None,
        can_background=True,
        reads_input=True,
        examples=(
            ('run "Tell me a story"', "the answer as it comes"),
            ('run -t 0.8 --seed 3 "Tell me a story" &', "in the background; 'fg' shows it"),
            ('run --choice yes --choice no "Is it raining?"', "one of two answers"),
            ('dmesg -n 20 | run "What went wrong? {}"', "a prompt with what another command writes"),
        ),
    ),
)
