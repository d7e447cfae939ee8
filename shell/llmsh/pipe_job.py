"""Jobs of several commands, in the foreground and at their end."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from shell.llmsh.jobs import AnyJob, PipeJob
from shell.llmsh.loop import Shell
from syscalls.client import Client, ConnectionLost
from syscalls.errno import SyscallError

GRACE_SECONDS = 5.0  # for the calls that end a process after Ctrl-C


async def stop_processes(client: Client, pids: Sequence[int]) -> None:
    """Stop processes; those that have exited in the meantime stay as they are."""
    for pid in pids:
        try:
            await client.stop(pid)
        except SyscallError:
            pass  # it has exited in the meantime; fg shows the rest
        except ConnectionLost:
            return


async def show_pipe(shell: Shell, job: PipeJob) -> int:
    """Show what a job of several commands writes, to its end. Returns its exit code.

    On Ctrl-C it is ended with all its processes; on Ctrl-Z they are stopped, and the job is kept.
    """
    shell.foreground.has_job = job.is_foreground = True
    try:
        while text := await job.output.receive():
            shell.screen.write(text)
            await shell.screen.drain()
        shell.screen.end_line()
        await job.done.wait()
    except (trio.Cancelled, BrokenPipeError):
        with trio.move_on_after(GRACE_SECONDS, shield=True):
            if shell.foreground.was_suspended:
                await _suspend_pipe(shell, job)
            else:
                await end_pipe(shell, job)
        raise
    finally:
        shell.foreground.has_job = job.is_foreground = False
    shell.jobs.remove(job)
    assert job.status is not None
    return job.status


async def stop_pipe(client: Client, job: PipeJob) -> None:
    """Stop the processes of a job of several commands, and those that they start from now on."""
    job.is_stopped = True
    await stop_processes(client, job.pids)


async def continue_job(client: Client, job: AnyJob) -> bool:
    """Let the stopped processes of a job go on. Returns whether there were any."""
    was_stopped = isinstance(job, PipeJob) and job.is_stopped
    if isinstance(job, PipeJob):
        job.is_stopped = False
    stopped = {info.pid for info in await client.ps() if info.state == "STOPPED"} & set(job.pids)
    for pid in sorted(stopped):
        await client.cont(pid)
    return bool(stopped) or was_stopped


async def _suspend_pipe(shell: Shell, job: PipeJob) -> None:
    shell.jobs.add(job)
    await stop_pipe(await shell.client(), job)
    shell.foreground.notify(f"[{job.number}] Stopped  {job.command}")


async def end_pipe(shell: Shell, job: PipeJob) -> None:
    """End a job of several commands, and wait until its processes are gone."""
    shell.jobs.remove(job)
    job.scope.cancel()
    await job.done.wait()
