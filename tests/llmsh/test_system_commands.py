"""lsdev, models, dmesg, shutdown, help, exit, and the shell's own loop."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import trio

from shell.llmsh.commands import TABLE
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments
from shell.llmsh.table import Command, CommandTable
from syscalls.errno import Errno, SyscallError
from syscalls.system import Models, Shutdown
from tests.llmsh.harness import CTRL_C, open_shell
from tests.llmsh.programs import Gate, say, wait_until
from tests.llmsh.test_process_commands import read_table
from tests.scripted_kernel import make_device, open_scripted_kernel


async def test_lsdev_and_models(tmp_path: Path) -> None:
    """Both list what the kernel has; a device's trouble stands beside its description."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        broken = msgspec.structs.replace(make_device("sim:1"), state="failed", message="out of luck")
        kernel.devices.append(broken)
        first, second = read_table((await shell.run("lsdev"))[1])
        assert (first["DEVICE"], first["STATE"], first["DRIVER"]) == ("sim:0", "ready", "4242")
        assert (second["STATE"], second["DESCRIPTION"]) == ("failed", "scripted; out of luck")
        (model,) = read_table((await shell.run("models"))[1])
        assert (model["MODEL"], model["CONTEXT"], model["PARAMETERS"]) == ("scripted", "4096", "1.2 M")
        assert json.loads((await shell.run("models --json"))[1])[0]["eos_token_ids"] == [256]
        assert json.loads((await shell.run("lsdev --json"))[1])[1]["message"] == "out of luck"


async def test_dmesg_prints_the_ring(tmp_path: Path) -> None:
    """dmesg shows subsystem, level unless ordinary, text and process; -n keeps the last ones."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        kernel.record("booted", subsystem="boot")
        kernel.record("out of frames", level="error", subsystem="mm", pid=4)
        first, second = (await shell.run("dmesg"))[1].splitlines()
        assert first.endswith("] boot: booted")
        assert second.endswith("] mm: error: out of frames (process 4)")
        assert (await shell.run("dmesg -n 1"))[1].splitlines() == [second]
        for number in (4, 41):  # a text that names the process says it once
            kernel.record("process 4 was killed", pid=number)
        told = [line.partition("killed")[2] for line in (await shell.run("dmesg -n 2"))[1].splitlines()]
        assert told == ["", " (process 41)"]
        events = json.loads((await shell.run("dmesg --json"))[1])
        assert [event["sequence"] for event in events] == [1, 2, 3, 4]


async def test_dmesg_follows_without_gaps(tmp_path: Path) -> None:
    """dmesg -f shows old and new events, each once, until Ctrl-C."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        kernel.record("event 1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "dmesg -f --json")
            for number in range(2, 6):
                await wait_until(lambda number=number: f"event {number - 1}" in shell.out.getvalue())
                kernel.record(f"event {number}")
            await wait_until(lambda: "event 5" in shell.out.getvalue())
            shell.shell.interrupt()
        *lines, interrupt = shell.out.getvalue().splitlines()
        assert [json.loads(line)["text"] for line in lines] == [f"event {n}" for n in range(1, 6)]
        assert interrupt == "^C"


async def test_shutdown_passes_the_grace(tmp_path: Path) -> None:
    """shutdown asks the kernel, with the grace that was given; a refusal comes out."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert (await shell.run("shutdown"))[0] == 0
        assert kernel.shutdown_grace == 30.0
        assert (await shell.run("shutdown --grace 2.5"))[0] == 0
        assert kernel.shutdown_grace == 2.5
        assert (await shell.run("shutdown --grace soon"))[0] == 2
        kernel.refusals[Shutdown] = SyscallError(Errno.EPERM, "shutdown is for administrators")
        assert (await shell.run("shutdown"))[0] == 1
        assert "shutdown: EPERM: shutdown is for administrators" in shell.errors


async def test_no_model_yet(tmp_path: Path) -> None:
    """While the kernel loads its first model, run says where to look."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        kernel.models.clear()
        assert (await shell.run("run x"))[0] == 1
        assert shell.errors == "run: the kernel serves no model yet; 'lsdev' shows what its devices do\n"
        assert Models() in kernel.calls


async def test_a_fault_of_ours_does_not_end_the_shell(tmp_path: Path) -> None:
    """A command that breaks is reported with its traceback; processes and the next command live on."""
    gate = Gate()

    async def break_down(shell: Shell, arguments: Arguments) -> int:
        raise ZeroDivisionError("oh")

    table = CommandTable({"all": (*TABLE, Command("broken", summary="Break down", function=break_down))})
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path, table=table) as shell:
        await shell.run("run hi &")
        assert (await shell.run("broken"))[0] == 1
        assert shell.errors.startswith("broken: internal error\nTraceback")
        assert "ZeroDivisionError: oh" in shell.errors
        assert (await shell.run("ps"))[0] == 0
        assert kernel.processes[1].state == "RUNNING"


async def test_help_needs_no_kernel(tmp_path: Path) -> None:
    """help lists all commands, explains one, and suggests another for an unknown name."""
    async with open_shell(tmp_path) as shell:
        assert "  run " in (await shell.run("help"))[1]
        page = (await shell.run("help nice"))[1]
        assert page.startswith("usage: nice N PID|%JOB...\n")
        assert await shell.run("nice --help") == (0, page)
        assert (await shell.run("help nicee"))[0] == 2
        assert "did you mean 'nice'?" in shell.errors


@pytest.mark.parametrize(
    ("text", "code"),
    [("exit", 0), ("exit 7", 7), ("stat", 2), ("stat; exit", 2), ("stat\nhelp", 0), ("exit 256", 1), ("", 0)],
)
async def test_exit_code_is_the_last_commands(tmp_path: Path, text: str, code: int) -> None:
    """A script's exit code is that of its last command, or what exit says."""
    async with open_shell(tmp_path) as shell:
        assert (await shell.run(text))[0] == code


async def test_a_script_with_a_syntax_error_does_nothing(tmp_path: Path) -> None:
    """The whole text is parsed first: no half of it runs."""
    async with open_shell(tmp_path) as shell:
        assert await shell.run("help; ps << x") == (2, "")
        assert await shell.run("help 'ps") == (2, "")
        assert shell.errors == (
            "syntax error at column 10: '<<' is not supported; quote << to write it as text\n"
            "syntax error at column 6: a ' is not closed\n"
        )


async def test_lines_of_a_terminal(tmp_path: Path) -> None:
    """A quotation goes on over lines, Ctrl-C drops it, an error does not end the shell, Ctrl-D does."""
    lines = ["run 'one", "two'", "run 'lost", CTRL_C, "nonsense", "ps ; | x", "", "help exit", None]
    async with open_scripted_kernel(tmp_path, say("yes")) as kernel:
        async with open_shell(tmp_path, lines, is_interactive=True) as shell:
            assert await shell.shell.run_terminal() == 0
            assert [process.prompt.split("|>")[1] for process in kernel.spawned] == ["one\ntwo<|end"]
            assert "unknown command 'nonsense'" in shell.errors
            assert "no command before '|'" in shell.errors
            assert "usage: exit" in shell.out.getvalue()


async def test_pipe_that_ends_inside_a_quotation(tmp_path: Path) -> None:
    """The open quotation is an error, not a command."""
    async with open_shell(tmp_path, ["help exit", "run 'half", None]) as shell:
        assert await shell.shell.run_terminal() == 2
        assert "a ' is not closed" in shell.errors
