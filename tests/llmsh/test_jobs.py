"""Interrupts and job control."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from syscalls.process import ExitStatus, Read
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate, say, wait_until
from tests.scripted_kernel import ScriptedProcess, open_scripted_kernel


async def test_interrupt_kills_the_process_and_nothing_else(tmp_path: Path) -> None:
    """Ctrl-C during run ends its process, prints ^C, skips the rest of the line; the shell goes on."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "run hi; ps")
            await gate.reached.wait()
            await wait_until(lambda: "begun" in shell.out.getvalue())
            shell.shell.interrupt()
        assert shell.out.getvalue() == "begun\n^C\n"
        assert shell.shell.status == 130
        assert kernel.spawned[0].end == ExitStatus("killed", message="killed by the test")
        assert not kernel.processes
        assert await shell.run("jobs") == (0, "")
        assert (await shell.run("ps"))[0] == 0


async def test_interrupt_kills_all_samples(tmp_path: Path) -> None:
    """Ctrl-C ends every process of a run with --n."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "run --n 3 hi")
            await gate.reached.wait()
            await wait_until(lambda: "begun" in shell.out.getvalue())
            shell.shell.interrupt()
        assert [process.is_zombie for process in kernel.spawned] == [True] * 3
        assert not kernel.processes


async def test_interrupt_leaves_background_jobs_alone(tmp_path: Path) -> None:
    """Ctrl-C while waiting for a job ends the wait, not the job, whose output is there later."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "wait")
            await gate.reached.wait()
            await wait_until(lambda: kernel.calls.count(Read(1, len("begun"))) == 2)
            shell.shell.interrupt()
        assert shell.shell.status == 130
        assert kernel.processes[1].state == "RUNNING"
        gate.opened.set()
        assert await shell.run("fg") == (0, "begun and done\n")


async def test_suspended_job_goes_on_where_it_was(tmp_path: Path) -> None:
    """Ctrl-Z stops the process and keeps it as a job; fg shows the rest, no character twice or lost."""
    gate = Gate("first half, ", "second half é")
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "run hi")
            await gate.reached.wait()
            await wait_until(lambda: "half, " in shell.out.getvalue())
            shell.shell.suspend()
        assert kernel.processes[1].state == "STOPPED"
        assert (await shell.run("jobs"))[1].split("\n")[1].split() == ["%1", "1", "STOPPED", "run", "hi"]
        gate.opened.set()
        assert await shell.run("fg") == (0, "second half é\n")
        assert not kernel.processes
        assert await shell.run("jobs") == (0, "")


async def test_bg_continues_a_stopped_job(tmp_path: Path) -> None:
    """stop and bg by job number; a job that is not stopped is refused; fg shows all its output."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run("run 'a; b' --max-tokens 30 &") == (0, "[1] 1\n")
        assert (await shell.run("stop %1"))[0] == 0
        assert kernel.processes[1].state == "STOPPED"
        assert await shell.run("bg %1") == (0, "[1] run 'a; b' --max-tokens 30\n")
        assert kernel.processes[1].state == "RUNNING"
        assert (await shell.run("bg"))[0] == 1
        assert "job %1 is not stopped" in shell.errors
        gate.opened.set()
        assert await shell.run("fg 1") == (0, "begun and done\n")


async def test_ended_job_keeps_its_output(tmp_path: Path) -> None:
    """A background job's output is there after its end: cat reads it, fg shows and collects it."""
    async with open_scripted_kernel(tmp_path, say("result")) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        await wait_until(lambda: all(job.has_ended for job in shell.shell.jobs))
        assert "Done (stop)" in (await shell.run("jobs"))[1]
        assert await shell.run("cat 1") == (0, "result\n")
        assert await shell.run("fg %1") == (0, "result\n")
        assert not kernel.processes
        assert (await shell.run("fg"))[0] == 1
        assert "there is no job; 'run PROMPT &' starts one" in shell.errors


async def test_wait_collects_all_jobs(tmp_path: Path) -> None:
    """wait without arguments says how each job ended, and takes them out of both tables."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say("x" * process.pid)
        return ExitStatus("length") if process.pid == 1 else ExitStatus("error", message="no luck")

    async with open_scripted_kernel(tmp_path, program) as kernel, open_shell(tmp_path) as shell:
        code, out = await shell.run("run a & run b & wait")
        assert code == 1
        assert out == (
            "[1] 1\n[2] 2\nprocess 1: length; 1 tokens in 1.5 s\n"
            "process 2: error: no luck; 2 tokens in 1.5 s\n"
        )
        assert not kernel.processes
        assert await shell.run("jobs; wait") == (0, "")


async def test_jobs_as_json(tmp_path: Path) -> None:
    """jobs --json gives numbers, pids, states and commands."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate), open_shell(tmp_path, wants_json=True) as shell:
        await shell.run("run hi --n 2 &")
        await gate.reached.wait()
        (row,) = json.loads((await shell.run("jobs"))[1])
        assert row == {"job": 1, "pids": [1, 2], "state": "RUNNING", "command": "run hi --n 2"}


async def test_killed_job_is_announced_and_gone(tmp_path: Path) -> None:
    """kill %1 ends a job; the shell reaps it and tells a person once."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel:
        async with open_shell(tmp_path, ["run hi &", "kill %1"], is_interactive=True) as shell:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shell.shell.run_terminal)
                await wait_until(lambda: "Done (killed)" in shell.out.getvalue())
                await wait_until(lambda: not kernel.processes)
                shell.terminal.send("jobs", "exit")
            assert shell.out.getvalue() == "[1] 1\n[1] Done (killed)  run hi\n"


async def test_end_of_a_job_is_told_at_the_prompt(tmp_path: Path) -> None:
    """A job that ends while a command runs is announced after it, at the next prompt."""
    gates = {1: Gate("one", ""), 2: Gate("two", "!")}

    async def program(process: ScriptedProcess) -> ExitStatus:
        return await gates[process.pid](process)

    async with open_scripted_kernel(tmp_path, program):
        async with open_shell(tmp_path, ["run a &", "run b"], is_interactive=True) as shell:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shell.shell.run_terminal)
                await gates[2].reached.wait()
                gates[1].opened.set()
                await wait_until(lambda: next(iter(shell.shell.jobs)).has_ended)
                gates[2].opened.set()
                shell.terminal.send("exit")
            assert shell.out.getvalue() == "[1] 1\ntwo!\n[1] Done (stop)  run a\n"


async def test_only_run_goes_to_the_background(tmp_path: Path) -> None:
    """`&` after another command alone is refused."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        assert await shell.run("ps &") == (2, "")
        assert "ps: cannot run in the background by itself; only 'run' and pipes can" in shell.errors


async def test_exit_warns_once_about_running_jobs(tmp_path: Path) -> None:
    """The first exit, or Ctrl-D, with a job running only warns; the second leaves, and the job ends."""
    gate = Gate()
    lines = ["run hi &", None, "jobs", "exit", None]
    async with open_scripted_kernel(tmp_path, gate) as kernel:
        async with open_shell(tmp_path, lines, is_interactive=True) as shell:
            await shell.shell.run_terminal()
            assert shell.errors.count("jobs are running: %1; 'exit' again ends them") == 2
        await wait_until(lambda: not kernel.processes)


async def test_fork_makes_a_job_of_children(tmp_path: Path) -> None:
    """fork starts children that have the parent's tokens; --seed gives each a seed of its own."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        await gate.reached.wait()
        assert await shell.run("fork 1 2 --seed 70") == (0, "[2] 2 3\n")
        children = [kernel.processes[2], kernel.processes[3]]
        assert [(child.parent, child.seed) for child in children] == [(1, 70), (1, 71)]
        assert await shell.run("fork 1") == (0, "[3] 4\n")
        assert kernel.processes[4].seed == kernel.processes[1].seed
        assert (await shell.run("fork 1 0"))[0] == 2
