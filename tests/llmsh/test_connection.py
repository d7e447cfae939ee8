"""Kernels that are absent, go away, and come back."""

from __future__ import annotations

from pathlib import Path

import trio

from syscalls.process import ExitStatus
from tests.llmsh.harness import ShellUnderTest, open_shell
from tests.llmsh.programs import Gate, say, wait_until
from tests.scripted_kernel import ScriptedProcess, open_scripted_kernel


async def test_no_kernel_is_3_and_says_what_to_do(tmp_path: Path) -> None:
    """The message names the socket and how to start a kernel; the shell goes on."""
    async with open_shell(tmp_path) as shell:
        assert await shell.run("ps") == (3, "")
        assert str(tmp_path / "llmos.sock") in shell.errors
        assert "llmos up" in shell.errors
        assert (await shell.run("ps; help exit"))[0] == 0


async def test_kernel_lost_during_a_command(tmp_path: Path) -> None:
    """The command fails with 3 and a named error, and the next one finds the new kernel."""
    gate = Gate()

    async def run_first(shell: ShellUnderTest) -> None:
        assert (await shell.run("run hi"))[0] == 3

    async with open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            async with open_scripted_kernel(tmp_path, gate):
                nursery.start_soon(run_first, shell)
                await gate.reached.wait()
        assert "run: the kernel closed the connection" in shell.errors
        assert str(tmp_path / "llmos.sock") in shell.errors
        (tmp_path / "llmos.sock").unlink()
        async with open_scripted_kernel(tmp_path, say("again")):
            assert await shell.run("run hi") == (0, "again\n")


async def test_kernel_restarted_between_commands(tmp_path: Path) -> None:
    """A restart that no command met is not an error: the next one opens a session by itself."""
    async with open_shell(tmp_path) as shell:
        for text in ("one", "two"):
            async with open_scripted_kernel(tmp_path, say(text)):
                assert await shell.run("run hi") == (0, f"{text}\n")
            (tmp_path / "llmos.sock").unlink()
        assert shell.errors == ""


async def test_jobs_of_a_lost_kernel_are_gone(tmp_path: Path) -> None:
    """Jobs, ended ones too, go with the kernel that held them: the next one's pids mean other processes."""
    gate = Gate()

    async def program(process: ScriptedProcess) -> ExitStatus:
        return await (say("old") if process.pid == 1 else gate)(process)

    async with open_shell(tmp_path) as shell:
        async with open_scripted_kernel(tmp_path, program):
            await shell.run("run a & run b &")
            await gate.reached.wait()
            await wait_until(lambda: "Done (stop)" in [job.outcome for job in shell.shell.jobs])
        (tmp_path / "llmos.sock").unlink()
        async with open_scripted_kernel(tmp_path, say("new")):
            assert (await shell.run("fg 1"))[0] == 1
            assert "fg: no job '1'" in shell.errors
            assert await shell.run("run --detach hi; jobs") == (0, "1\n")
            assert await shell.run("run hi &") == (0, "[1] 2\n")


async def test_one_session_serves_all_commands(tmp_path: Path) -> None:
    """Processes of an earlier command live on: the session stays open until the shell ends."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel:
        async with open_shell(tmp_path) as shell:
            await shell.run("run hi &")
            await shell.run("ps; free; models")
            assert kernel.processes[1].state == "RUNNING"
            assert len({id(process.session) for process in kernel.spawned}) == 1
