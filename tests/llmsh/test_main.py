"""llmsh as a program: arguments, pipes, signals and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from shell.llmsh.main import read_settings
from syscalls.process import ExitStatus, Read
from tests.llmsh.programs import Gate, say, wait_until
from tests.scripted_kernel import open_scripted_kernel

COMMAND = [sys.executable, "-m", "shell.llmsh.main"]


async def run_llmsh(
    folder: Path, *arguments: str, stdin: bytes = b"", check: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run the program to its end against the kernel in `folder`."""
    return await trio.run_process(
        [*COMMAND, "--socket", str(folder / "llmos.sock"), *arguments],
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=check,
    )


@pytest.mark.parametrize(
    ("end", "code"),
    [(ExitStatus("length"), 0), (ExitStatus("killed"), 137), (ExitStatus("error", message="x"), 1)],
)
async def test_c_has_the_exit_code_of_the_process(tmp_path: Path, end: ExitStatus, code: int) -> None:
    """-c prints plain text, and exits with what the last process said."""
    async with open_scripted_kernel(tmp_path, say("é text", end)):
        done = await run_llmsh(tmp_path, "-c", "help exit; run hi")
        assert done.returncode == code
        assert done.stdout.endswith("é text\n".encode())
        assert b"\x1b" not in done.stdout + done.stderr


async def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """A prompt with bytes that are not UTF-8 is repaired, in an argument and in a pipe."""
    async with open_scripted_kernel(tmp_path, say("ok")) as kernel:
        commands = os.fsdecode(b"run --raw a\xffb")
        assert (await run_llmsh(tmp_path, "-c", commands)).returncode == 0
        assert (await run_llmsh(tmp_path, stdin=b"run --raw a\xffb\n")).returncode == 0
        assert [process.prompt for process in kernel.spawned] == ["a\ufffdbok<|end|>"] * 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
async def test_a_stream_that_is_closed_leads_nowhere(tmp_path: Path, closed: str) -> None:
    """A shell without a standard stream does what it is told, and its files do not come to stand for it."""
    async with open_scripted_kernel(tmp_path, say("ok")) as kernel:
        script = 'exec "$@" ' + closed
        command = [
            *COMMAND,
            "--socket",
            str(tmp_path / "llmos.sock"),
            "-c",
            f"run hi > {tmp_path / 'out'}; ps",
        ]
        done = await trio.run_process(
            ["/bin/sh", "-c", script, "sh", *command], capture_stdout=True, capture_stderr=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert (tmp_path / "out").read_text() == "ok\n"
        assert len(kernel.spawned) == 1
        assert (await run_llmsh(tmp_path, stdin=b"run hi\n")).stdout == b"ok\n"


async def test_what_the_encoding_does_not_have_is_a_question_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a locale of few characters the others are replaced; nothing fails, and a file has all of them."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    async with open_scripted_kernel(tmp_path, say("é 日")):
        done = await run_llmsh(tmp_path, "-c", f"run hi; run hi > {tmp_path / 'out'}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "é ?\n".encode("latin-1"), b"")
        assert (tmp_path / "out").read_text(encoding="utf-8") == "é 日\n"


async def test_usage_error_is_2(tmp_path: Path) -> None:
    """A command that does not exist, and an argument that does not, exit with 2."""
    assert (await run_llmsh(tmp_path, "-c", "hepl")).returncode == 2
    done = await run_llmsh(tmp_path, "--nonsense")
    assert done.returncode == 2
    assert b"--nonsense" in done.stderr


async def test_no_kernel_is_3(tmp_path: Path) -> None:
    """Without a kernel the message names the socket and suggests to start one."""
    done = await run_llmsh(tmp_path, "-c", "ps")
    assert done.returncode == 3
    assert str(tmp_path / "llmos.sock").encode() in done.stderr
    assert b"llmos up" in done.stderr


async def test_script_file_and_json(tmp_path: Path) -> None:
    """A script runs like -c, with comments and quotations over lines; --json goes for every listing."""
    script = tmp_path / "script"
    script.write_text("# a comment\nrun --raw 'two\nlines' &\nwait\nfree # here too\n")
    async with open_scripted_kernel(tmp_path, say("ok")) as kernel:
        done = await run_llmsh(tmp_path, "--json", str(script))
        assert done.returncode == 0, done.stderr
        assert kernel.spawned[0].prompt.startswith("two\nlines")
        _, _, listings = done.stdout.partition(b"\n")
        waited, _, frames = listings.partition(b"]\n")
        assert json.loads(waited + b"]")[0]["status"]["reason"] == "stop"
        assert json.loads(frames)[0]["free"] == 60 << 20


async def test_lines_from_a_pipe(tmp_path: Path) -> None:
    """Commands come from standard input, one by one, and so do the lines of a chat; no prompt is shown."""
    async with open_scripted_kernel(tmp_path, say("answer")):
        done = await run_llmsh(tmp_path, stdin=b"run hi\nchat\nhello\n/exit\nnonsense\njobs")
        assert done.returncode == 0
        assert done.stdout == b"answer\nanswer\n"
        assert b"unknown command 'nonsense'" in done.stderr


async def test_lines_are_run_as_they_come(tmp_path: Path) -> None:
    """A pipe that stays open gets each answer before the next line is written."""
    async with open_scripted_kernel(tmp_path, say("answer")), trio.open_nursery() as nursery:
        arguments = [*COMMAND, "--socket", str(tmp_path / "llmos.sock")]
        process: trio.Process = await nursery.start(
            partial(trio.run_process, arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            await process.stdin.send_all(b"run hi\n")
            received = b""
            while not received.endswith(b"\n"):
                received += await process.stdout.receive_some()
            assert received == b"answer\n"
        await process.stdin.aclose()


async def test_interrupt_of_c_kills_the_process(tmp_path: Path) -> None:
    """SIGINT during -c kills the running process, skips the rest, and exits with 130."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await gate.reached.wait()
            await wait_until(lambda: kernel.calls[-1] == Read(1, len("begun")))  # printed, and asks for more
            (pid,) = find_children()
            os.kill(pid, signal.SIGINT)

        nursery.start_soon(interrupt)
        done = await run_llmsh(tmp_path, "-c", "run hi; help")
        assert done.returncode == 130
        assert done.stdout == b"begun\n^C\n"
        assert kernel.spawned[0].end is not None
        assert kernel.spawned[0].end.reason == "killed"


def find_children() -> list[int]:
    """Process ids of llmsh programs that this process started."""
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "shell.llmsh.main" in line]


async def test_reader_that_leaves(tmp_path: Path) -> None:
    """When the reader of a pipe goes away the shell ends quietly with 141, and its process with it."""
    gate = Gate("x" * 50, "y" * 50)
    async with open_scripted_kernel(tmp_path, gate) as kernel:
        reading, writing = os.pipe()
        try:
            arguments = [*COMMAND, "--socket", str(tmp_path / "llmos.sock"), "-c", "run hi"]
            async with trio.open_nursery() as nursery:
                process: trio.Process = await nursery.start(
                    partial(trio.run_process, arguments, stdout=writing, stderr=subprocess.PIPE, check=False)
                )
                await gate.reached.wait()
                os.close(reading)
                gate.opened.set()
                assert await process.wait() == 141
                assert process.stderr is not None
                assert await process.stderr.receive_some() == b""
        finally:
            os.close(writing)
        await wait_until(lambda: not kernel.processes)


def test_script_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing script is named and exits with 2; so does a script beside -c."""
    with pytest.raises(SystemExit) as caught:
        read_settings([str(tmp_path / "absent")])
    assert caught.value.code == 2
    assert "absent" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        read_settings(["-c", "ps", "script"])
    assert caught.value.code == 2


def test_scripts_start_without_what_only_a_person_needs() -> None:
    """The prompt and the compiler of grammars take longer to import than a short script to run."""
    heavy = "{'prompt_toolkit', 'llguidance', 'torch'}"
    script = f"import sys, shell.llmsh.main; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_command_without_c_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """The name of a command where a script's is wanted is answered with how to call it."""
    for name, hint in (("ps", "; a command goes after -c: llmsh -c ps"), ("nothing", "")):
        with pytest.raises(SystemExit) as caught:
            read_settings([name])
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"llmsh: {name}: No such file or directory{hint}\n"
