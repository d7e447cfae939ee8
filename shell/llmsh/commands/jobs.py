"""Job control: jobs, fg, bg, wait; and the display of a process's output, which `run` uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from shell.llmsh.errors import CommandError
from shell.llmsh.jobs import AnyJob, Job, PipeJob, Sample
from shell.llmsh.listing import Column, make_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments
from shell.llmsh.pipe_job import GRACE_SECONDS, continue_job, show_pipe, stop_processes
from shell.llmsh.render import format_seconds
from shell.llmsh.table import JSON, Command
from syscalls.client import Client, ConnectionLost
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus, Waited


async def show_job(
    shell: Shell, client: Client, job: Job, *, is_quiet: bool = False, is_joined: bool = False
) -> list[Waited]:
    """Show a job's output to its end, and reap its processes.

    On Ctrl-C the processes are killed; on Ctrl-Z they are stopped, and the job is kept.

    Args:
        is_quiet: show nothing: the caller prints the result.
        is_joined: its processes are part of the pipe's job already.
    """
    job.is_foreground = True
    if shell.pipe_job is None:
        shell.foreground.has_job = True
    try:
        if shell.pipe_job is not None and not is_joined:
            await join_pipe(client, shell.pipe_job, job.pids)
        for index, sample in enumerate(job.samples):
            if len(job.samples) > 1 and not is_quiet:
                shell.screen.line(f"--- sample {index}: process {sample.pid}, seed {sample.seed}")
            await _show_sample(shell, client, sample, is_quiet)
        waited = [await client.wait(pid) for pid in job.pids]
    except (trio.Cancelled, BrokenPipeError):
        with trio.move_on_after(GRACE_SECONDS, shield=True):
            if shell.foreground.was_suspended and shell.pipe_job is None:
                await _stop_job(shell, client, job)
            else:
                await end_job(shell, client, job)
        raise
    except SyscallError as error:
        if error.errno is Errno.ESRCH:
            shell.jobs.remove(job)  # somebody else has reaped it
        raise
    except ConnectionLost:
        shell.jobs.remove(job)
        raise
    finally:
        job.is_foreground = False
        if shell.pipe_job is None:
            shell.foreground.has_job = False
    shell.jobs.remove(job)
    for usages in shell.meters:
        usages += [end.usage for end in waited]
    return waited


async def _show_sample(shell: Shell, client: Client, sample: Sample, is_quiet: bool) -> None:
    if sample.end is None:
        async for output in client.stream(sample.pid, sample.offset):
            text = sample.take(output)
            if not is_quiet:
                shell.screen.write(text)
                await shell.screen.drain()
    if not is_quiet:
        shell.screen.end_line()


async def join_pipe(client: Client, pipe_job: PipeJob, pids: Sequence[int]) -> None:
    """Make processes part of a job of several commands; if that is stopped, so are they."""
    pipe_job.processes += pids
    if pipe_job.is_stopped:
        await stop_processes(client, pids)


async def end_job(shell: Shell, client: Client, job: Job) -> None:
    shell.jobs.remove(job)
    for pid in job.pids:
        try:
            await client.kill(pid)
            await client.wait(pid)
        except SyscallError:
            pass  # it is gone
        except ConnectionLost:
            return


async def _stop_job(shell: Shell, client: Client, job: Job) -> None:
    shell.jobs.add(job)
    await stop_processes(client, job.pids)
    shell.foreground.notify(f"[{job.number}] Stopped  {job.command}")
    watch_job(shell, client, job)


def report_ends(shell: Shell, waited: list[Waited]) -> int:
    """Say what was not an ordinary end, and return the exit code: the first that is not 0."""
    for end in waited:
        if end.status.code:
            detail = f": {end.status.message}" if end.status.message else ""
            shell.screen.error(f"process {end.pid}: {end.status.reason}{detail}")
        elif end.status.reason == "length":
            shell.screen.note(
                f"[process {end.pid} ended after {end.usage.num_output_tokens} tokens, its limit]"
            )
    return next((end.status.code for end in waited if end.status.code), 0)


def watch_job(shell: Shell, client: Client, job: Job) -> None:
    """Start waiting, in the background, for a job's end. Does nothing when it is watched already."""
    if not job.is_watched:
        job.is_watched = True
        shell.nursery.start_soon(_watch, shell, client, job)


async def _watch(shell: Shell, client: Client, job: Job) -> None:
    for sample in job.samples:
        job.ends[sample.pid] = await _watch_sample(client, sample)
    if job.is_foreground or not job.number:
        return  # its end is seen there, or it is over already
    shell.foreground.notify(f"[{job.number}] {job.outcome}  {job.command}")
    if all(end.reason == "killed" for end in job.ends.values()):
        await end_job(shell, client, job)


async def _watch_sample(client: Client, sample: Sample) -> ExitStatus:
    """Read without showing: reads do not consume, so `fg` can show it later."""
    try:
        async for output in client.stream(sample.pid, sample.offset):
            end = output.end
    except SyscallError as error:
        return ExitStatus("killed", message=str(error))  # reaped by somebody else
    except ConnectionLost as error:
        return ExitStatus("killed", message=str(error))  # it lived in that session
    assert end is not None
    return end


async def list_jobs(shell: Shell, arguments: Arguments) -> int:
    """`jobs`: what runs in the background, and what has ended there."""
    states: dict[int, str] = {}
    if any(not job.has_ended for job in shell.jobs):
        client = await shell.client()
        states = {info.pid: info.state for info in await client.ps()}
    rows = [(job, job.outcome if job.has_ended else _join_states(job, states)) for job in shell.jobs]
    if shell.is_json(arguments):
        shell.screen.json(
            [
                {"job": job.number, "pids": job.pids, "state": state, "command": job.command}
                for job, state in rows
            ]
        )
    elif rows:
        columns = (Column("JOB", True), Column("PID"), Column("STATE"), Column("COMMAND", is_flexible=True))
        cells = [(f"%{job.number}", " ".join(map(str, job.pids)), state, job.command) for job, state in rows]
        shell.screen.show(make_table(columns, cells))
    return 0


def _join_states(job: AnyJob, states: Mapping[int, str]) -> str:
    if isinstance(job, PipeJob):
        found = dict.fromkeys(states[pid] for pid in job.pids if pid in states)
        return ", ".join(found) or ("STOPPED" if job.is_stopped else "RUNNING")
    return ", ".join(dict.fromkeys(states.get(pid, "gone") for pid in job.pids))


async def bring_to_foreground(shell: Shell, arguments: Arguments) -> int:
    """`fg`: show a job's output, from where it was left, to its end."""
    client = await shell.client()
    job = shell.jobs.find(next(iter(arguments.operands), None))
    await continue_job(client, job)
    shell.screen.note(job.command)
    if isinstance(job, PipeJob):
        return await show_pipe(shell, job)
    return report_ends(shell, await show_job(shell, client, job))


async def continue_in_background(shell: Shell, arguments: Arguments) -> int:
    """`bg`: let a stopped job go on without showing its output."""
    client = await shell.client()
    job = shell.jobs.find(next(iter(arguments.operands), None))
    if not await continue_job(client, job):
        raise CommandError(f"job %{job.number} is not stopped")
    if isinstance(job, Job):
        watch_job(shell, client, job)
    shell.screen.line(f"[{job.number}] {job.command}")
    return 0


async def wait(shell: Shell, arguments: Arguments) -> int:
    """`wait`: until processes, or all jobs, have ended; says how, and reaps them."""
    client = await shell.client()
    is_json = shell.is_json(arguments)
    targets: list[int | PipeJob] = []
    for word in arguments.operands or [f"%{job.number}" for job in shell.jobs]:
        job = shell.jobs.find(word) if word.startswith("%") else None
        targets += [job] if isinstance(job, PipeJob) else shell.jobs.resolve(word)
    rows: list[object] = []
    code = 0
    for target in targets:
        if isinstance(target, PipeJob):
            number = target.number
            code = await _wait_for_pipe(shell, target)
            rows.append({"job": number, "status": code})
            if not is_json:
                shell.screen.line(f"job %{number}: exit code {code}")
            continue
        end = await _wait_for_end(client, target)
        rows.append(end)
        code = end.status.code
        job = shell.jobs.of_pid(target)
        if isinstance(job, Job) and set(job.pids) <= {row.pid for row in rows if isinstance(row, Waited)}:
            shell.jobs.remove(job)
        if not is_json:
            usage = end.usage
            detail = f": {end.status.message}" if end.status.message else ""
            shell.screen.line(
                f"process {target}: {end.status.reason}{detail}; "
                f"{usage.num_output_tokens} tokens in {format_seconds(usage.running_seconds)}"
            )
    if is_json:
        shell.screen.json(rows)
    return code


async def _wait_for_pipe(shell: Shell, job: PipeJob) -> int:
    """Wait for a job of several commands; what it writes is dropped, or it would wait for a reader."""
    while await job.output.receive():
        pass
    await job.done.wait()
    shell.jobs.remove(job)
    assert job.status is not None
    return job.status


async def _wait_for_end(client: Client, pid: int) -> Waited:
    """Wait for a process's end, and only then reap it: a wait that Ctrl-C abandons would still reap it."""
    info = await client.stat(pid)
    async for _ in client.stream(pid, info.usage.num_output_tokens):
        pass
    return await client.wait(pid)


COMMANDS = (
    Command(
        "jobs",
        summary="List the background jobs of this shell",
        details="An ended job keeps its output until 'fg' shows it or 'wait' collects it.",
        function=list_jobs,
        options=(JSON,),
        examples=(("jobs", "numbers, processes and states"),),
    ),
    Command(
        "fg",
        summary="Bring a job to the foreground",
        operands="[%JOB|PID]",
        details=(
            "Shows its output from where it was left and follows it to the end; a stopped job goes on. "
            "Without an argument, the newest job."
        ),
        function=bring_to_foreground,
        max_operands=1,
        completes=("job",),
        examples=(
            ("fg", "the newest job"),
            ("fg %1", "the first"),
        ),
    ),
    Command(
        "bg",
        summary="Let a stopped job go on in the background",
        operands="[%JOB|PID]",
        details="Ctrl-Z stops the job in the foreground. Without an argument, the newest job.",
        function=continue_in_background,
        max_operands=1,
        completes=("job",),
        examples=(("bg %1", "the first job goes on, and the prompt stays"),),
    ),
    Command(
        "wait",
        summary="Wait until processes have ended",
        operands="[%JOB|PID]...",
        details=(
            "Says how each ended and what it used, and removes it from the process table, its output too. "
            "Without an argument, waits for all jobs of this shell. The exit code is that of the last "
            "process."
        ),
        function=wait,
        options=(JSON,),
        max_operands=None,
        completes=("pid",),
        examples=(
            ("wait", "until all jobs are over"),
            ("wait %1; echo $?", "the first job, and its exit code"),
        ),
    ),
)
