"""Processes: ps, stat, kill, stop, cont, nice, fork."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from shell.llmsh.commands.generation import read_count, read_nice
from shell.llmsh.commands.run import make_job, start_in_background
from shell.llmsh.errors import EXIT_ERROR, CommandError, UsageError
from shell.llmsh.hints import explain_error
from shell.llmsh.jobs import PipeJob, parse_pid
from shell.llmsh.listing import Column, Listing, make_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.pipe_job import continue_job, end_pipe, stop_pipe
from shell.llmsh.render import format_bytes, format_seconds
from shell.llmsh.table import JSON, Command
from syscalls.errno import SyscallError
from syscalls.process import ProcessInfo


async def list_processes(shell: Shell, arguments: Arguments) -> int:
    """`ps`: the process table."""
    client = await shell.client()
    processes = await client.ps(everyone=bool(arguments["all"]))
    if shell.is_json(arguments):
        shell.screen.json(processes)
    else:
        shell.screen.show(make_process_table(processes, with_tenant=bool(arguments["all"])))
    return 0


def make_process_table(processes: Sequence[ProcessInfo], *, with_tenant: bool) -> Listing:
    """Lay out processes, one a row."""
    columns = [
        Column("PID", True),
        *([Column("TENANT")] if with_tenant else []),
        Column("STATE"),
        Column("NI", True, is_minor=True),
        Column("TOKENS", True),
        Column("OUT", True, is_minor=True),
        Column("MEM", True),
        Column("SHARED", True, is_minor=True),
        Column("AGE", True),
        Column("DEVICE", is_minor=True),
        Column("LABEL", is_flexible=True),
    ]
    rows = [
        (
            info.pid,
            *([info.tenant] if with_tenant else []),
            f"{info.state} ({info.status.reason})" if info.state == "ZOMBIE" and info.status else info.state,
            info.nice,
            info.num_tokens,
            info.usage.num_output_tokens,
            format_bytes(info.num_resident_bytes),
            format_bytes(info.num_shared_bytes),
            format_seconds(info.age_seconds),
            info.device,
            info.label,
        )
        for info in processes
    ]
    return make_table(columns, rows)


async def describe(shell: Shell, arguments: Arguments) -> int:
    """`stat`: all that is known of one process."""
    client = await shell.client()
    info = await client.stat(shell.jobs.resolve_one(arguments.operands[0]))
    if shell.is_json(arguments):
        shell.screen.json(info)
        return 0
    usage, status = info.usage, info.status
    rows: list[tuple[str, object]] = [
        ("pid", info.pid),
        ("parent", info.parent),
        ("tenant", info.tenant),
        ("label", info.label),
        ("state", info.state),
        ("end", f"{status.reason} {status.message}".strip() if status else None),
        ("model", info.model),
        ("device", info.device),
        ("nice", info.nice),
        ("seed", info.seed),
        ("age", format_seconds(info.age_seconds)),
        ("tokens", f"{info.num_tokens} ({info.num_computed} computed)"),
        ("prompt tokens", f"{usage.num_prompt_tokens} ({usage.num_cached_tokens} from shared memory)"),
        ("output tokens", f"{usage.num_output_tokens} (at most {info.max_tokens} in this turn)"),
        ("memory", f"{format_bytes(info.num_resident_bytes)} ({format_bytes(info.num_shared_bytes)} shared)"),
        ("queued", format_seconds(usage.queued_seconds)),
        ("first token", format_seconds(usage.first_token_seconds)),
        ("running", format_seconds(usage.running_seconds)),
        ("preemptions", usage.num_preemptions),
    ]
    shell.screen.show(make_table((Column("FIELD"), Column("VALUE", is_flexible=True)), rows))
    return 0


async def kill(shell: Shell, arguments: Arguments) -> int:
    """`kill`: end processes."""
    client = await shell.client()
    return await _for_each(shell, "kill", arguments.operands, client.kill, lambda job: end_pipe(shell, job))


async def stop(shell: Shell, arguments: Arguments) -> int:
    """`stop`: keep processes from running."""
    client = await shell.client()
    return await _for_each(shell, "stop", arguments.operands, client.stop, lambda job: stop_pipe(client, job))


async def cont(shell: Shell, arguments: Arguments) -> int:
    """`cont`: let stopped processes go on."""
    client = await shell.client()
    return await _for_each(
        shell, "cont", arguments.operands, client.cont, lambda job: continue_job(client, job)
    )


async def renice(shell: Shell, arguments: Arguments) -> int:
    """`nice`: set the nice level of processes."""
    word, *targets = arguments.operands
    try:
        level = read_nice(word)
    except ValueError as error:
        raise UsageError(f"{word!r}: {error}") from None
    client = await shell.client()

    async def set_nice(pid: int) -> None:
        await client.nice(pid, level)

    return await _for_each(shell, "nice", targets, set_nice)


async def _for_each(
    shell: Shell,
    name: str,
    words: Sequence[str],
    call: Callable[[int], Awaitable[None]],
    call_pipe: Callable[[PipeJob], Awaitable[object]] | None = None,
) -> int:
    """Make a call for every process named; one failure does not keep the others from it.

    Args:
        shell: knows the jobs.
        name: of the command.
        words: pids and jobs. Nothing is done when one is neither.
        call: for a process.
        call_pipe: for a job of several commands, which may have no process at the moment; None: for each of
            those that it has.
    """
    for word in words:
        if not word.startswith("%"):
            parse_pid(word)
    code = 0
    for word in words:
        try:
            job = shell.jobs.find(word) if word.startswith("%") else None
            if call_pipe is not None and isinstance(job, PipeJob):
                await call_pipe(job)
                continue
            pids = shell.jobs.resolve(word)
        except CommandError as error:
            shell.screen.error(f"{name}: {error}")
            code = EXIT_ERROR
            continue
        for pid in pids:
            try:
                await call(pid)
            except SyscallError as error:
                shell.screen.error(f"{name}: {await explain_error(shell, error, [str(pid)])}")
                code = EXIT_ERROR
    return code


async def fork(shell: Shell, arguments: Arguments) -> int:
    """`fork`: children that continue from a process's tokens so far, as a background job."""
    try:
        count = read_count(arguments.operands[1]) if len(arguments.operands) > 1 else 1
    except ValueError as error:
        raise UsageError(f"{arguments.operands[1]!r}: {error}") from None
    client = await shell.client()
    pid = shell.jobs.resolve_one(arguments.operands[0])
    info = await client.stat(pid)
    text = await shell.texts.open(await shell.find_model(client, info.model))
    seed = arguments["seed"]
    spawned = await client.fork(pid, count, () if seed is None else range(seed, seed + count))
    start_in_background(shell, client, make_job(spawned, text, arguments.source))
    return 0


COMMANDS = (
    Command(
        "ps",
        summary="List processes",
        details=(
            "Yours, or with -a everyone's (administrators): state, nice level, tokens in all and of output,"
            " memory and how much of it is shared."
        ),
        function=list_processes,
        options=(Option(("--all", "-a"), "everyone's processes"), JSON),
        examples=(
            ("ps", "your processes"),
            ("ps -a | grep RUNNING", "everybody's that run"),
        ),
    ),
    Command(
        "stat",
        summary="Describe one process",
        operands="PID|%JOB",
        function=describe,
        options=(JSON,),
        min_operands=1,
        max_operands=1,
        completes=("pid",),
        examples=(
            ("stat 7", "process 7"),
            ("stat %1 --json", "the first job's, for a program"),
        ),
    ),
    Command(
        "kill",
        summary="End processes, in whatever state they are",
        operands="PID|%JOB...",
        details="Their memory is free when the command returns.",
        function=kill,
        min_operands=1,
        max_operands=None,
        completes=("pid",),
        examples=(("kill 7 %1", "process 7, and all of the first job"),),
    ),
    Command(
        "stop",
        summary="Keep processes from running; their memory stays",
        operands="PID|%JOB...",
        details="'cont' lets them go on.",
        function=stop,
        min_operands=1,
        max_operands=None,
        completes=("pid",),
        examples=(("stop %1", "the first job; 'cont %1' lets it go on"),),
    ),
    Command(
        "cont",
        summary="Let stopped processes go on where they were",
        operands="PID|%JOB...",
        function=cont,
        min_operands=1,
        max_operands=None,
        completes=("pid",),
        examples=(("cont %1", "the first job goes on where it was"),),
    ),
    Command(
        "nice",
        summary="Set the nice level of processes, from -20 to 19",
        operands="N PID|%JOB...",
        details="Lower runs first.",
        function=renice,
        min_operands=2,
        max_operands=None,
        completes=("", "pid"),
        examples=(
            ("nice 10 7", "process 7 lets others go first"),
            ("nice -5 %1", "the first job goes before them"),
        ),
    ),
    Command(
        "fork",
        summary="Let a process go on in other ways, too",
        operands="PID|%JOB [N]",
        details=(
            "Creates N children (1 by default) that continue from its tokens so far, as a background job. "
            "Memory is shared copy-on-write. They keep the parent's seed, and so say the same as it, unless "
            "--seed gives them others."
        ),
        function=fork,
        options=(Option(("--seed",), "child i takes seed S + i", "S", int),),
        min_operands=1,
        max_operands=2,
        completes=("pid", ""),
        examples=(("fork 7 2 --seed 20", "two ways in which process 7 might go on"),),
    ),
)
