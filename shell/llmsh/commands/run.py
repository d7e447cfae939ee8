"""run: from a prompt to a process and its output."""

from __future__ import annotations

from shell.llmsh.commands.generation import GENERATION_OPTIONS, make_spawn_options, read_count
from shell.llmsh.commands.jobs import report_ends, show_job, watch_job
from shell.llmsh.errors import UsageError
from shell.llmsh.jobs import Job, Sample
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.table import Command
from shell.llmsh.text import encode_prompt
from syscalls.client import Client
from syscalls.process import Spawned
from syscalls.text.tokenizer import TextModel


async def run(shell: Shell, arguments: Arguments) -> int:
    """`run`: spawn from a prompt and show the output."""
    prompt = " ".join(arguments.operands)
    if arguments["raw"] and arguments["chat"]:
        raise UsageError("--raw and --chat exclude each other")
    options = make_spawn_options(arguments, label=prompt)
    client = await shell.client()
    model = await shell.find_model(client, arguments["model"])
    text = await shell.texts.open(model)
    use_template = True if arguments["chat"] else False if arguments["raw"] else None
    tokens = await encode_prompt(text, prompt, use_template=use_template)
    options["model"] = model.name
    options["num_samples"] = arguments["n"] or 1
    options["detached"] = bool(arguments["detach"])
    spawned = await client.spawn(tokens, **options)
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
        "PROMPT... [&]",
        "Run a prompt and show the output as it comes. The prompt is rendered as a user's turn when the "
        "model has a chat template, and taken as it stands otherwise. Ctrl-C kills the process, Ctrl-Z stops "
        "it; with & at the end it runs in the background, and 'fg' or 'cat' shows its output. The exit code "
        "is 0 when the output ended by itself or by --max-tokens, 137 when it was killed, 1 after an error.",
        run,
        (
            *GENERATION_OPTIONS,
            Option(("--n",), "draw N outputs; sample i uses seed + i", "N", read_count),
            Option(("--raw",), "no chat template"),
            Option(("--chat",), "insist on the chat template"),
            Option(("--detach",), "print the pid and return; the process outlives the shell"),
            Option(("--json",), "print text, status and usage as JSON at the end"),
        ),
        min_operands=1,
        max_operands=None,
        can_background=True,
    ),
)
