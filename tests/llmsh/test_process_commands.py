"""ps, stat, kill, stop, cont, nice, cat, tail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from syscalls.process import ExitStatus
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate, say, wait_until
from tests.scripted_kernel import ScriptedProcess, open_scripted_kernel


def read_table(text: str) -> list[dict[str, str]]:
    """Read a printed table into rows by column title; cells are separated by two blanks or more."""
    header, *lines = text.splitlines()
    return [
        dict(zip(header.split(), [c.strip() for c in line.split("  ") if c.strip()], strict=True))
        for line in lines
    ]


async def test_ps_shows_the_table(tmp_path: Path) -> None:
    """ps prints a row for each process, and -a also whose it is."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate), open_shell(tmp_path) as shell:
        await shell.run("run 'tell\nme' --nice 3 &")
        await gate.reached.wait()
        (row,) = read_table((await shell.run("ps"))[1])
        assert row == {
            "PID": "1",
            "STATE": "RUNNING",
            "NI": "3",
            "TOKENS": str(len("tell\nme") + 3 + len("begun")),
            "OUT": str(len("begun")),
            "MEM": "3.0 MiB",
            "SHARED": "1.0 MiB",
            "AGE": "2.5 s",
            "DEVICE": "sim:0",
            "LABEL": "tell me",
        }
        (row,) = read_table((await shell.run("ps -a"))[1])
        assert row["TENANT"] == "tester"


async def test_ps_json_is_what_the_kernel_said(tmp_path: Path) -> None:
    """ps --json has every field of the contract by name, nested ones too."""
    async with open_scripted_kernel(tmp_path, say("ab")) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        await wait_until(lambda: kernel.processes[1].is_zombie)
        (row,) = json.loads((await shell.run("ps --json"))[1])
        assert row["state"] == "ZOMBIE"
        assert row["usage"]["num_output_tokens"] == 3
        assert row["status"]["reason"] == "stop"
        assert json.loads((await shell.run("stat --json 1"))[1]) == row


async def test_stat_describes_one_process(tmp_path: Path) -> None:
    """stat takes a pid or a job, and tells an unknown one from a word that is no pid."""
    async with open_scripted_kernel(tmp_path, say("ab")) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi --seed 77 &")
        await wait_until(lambda: kernel.processes[1].is_zombie)
        rows = {row["FIELD"]: row["VALUE"] for row in read_table((await shell.run("stat %1"))[1])}
        assert rows["seed"] == "77"
        assert rows["end"] == "stop"
        assert rows["output tokens"] == "3 (at most 4091 in this turn)"
        assert (await shell.run("stat 5"))[0] == 1
        assert (await shell.run("stat one"))[0] == 2
        assert (await shell.run("stat %7"))[0] == 1
        assert shell.errors == (
            "stat: ESRCH: no process 5; yours: 1\n"
            "stat: 'one' is no process id: a number, or %N for a job\n"
            "stat: no job '%7'; there are %1\n"
        )


async def test_a_command_for_one_process_refuses_a_job_of_many(tmp_path: Path) -> None:
    """A job with several processes is ambiguous: the error lists them."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate), open_shell(tmp_path) as shell:
        await shell.run("run --n 2 hi &")
        assert (await shell.run("cat %1"))[0] == 2
        assert "job %1 has several processes; name one: 1, 2" in shell.errors


async def test_kill_goes_on_after_a_failure(tmp_path: Path) -> None:
    """kill takes several; an unknown one is reported, the others die, and the exit code is 1."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run --detach a; run --detach b")
        assert (await shell.run("kill 1 99 2"))[0] == 1
        assert shell.errors == "kill: ESRCH: no process 99; yours: 1, 2\n"
        await shell.run("run c &")
        assert (await shell.run("kill %7 %1"))[0] == 1
        assert shell.errors.endswith("yours: 1, 2\nkill: no job '%7'; there are %1\n")
        assert (await shell.run("run d & kill 4 nonsense"))[0] == 2  # a slip: nothing is done
        assert [process.end is not None for process in kernel.spawned] == [True, True, True, False]
        assert {process.end.reason for process in kernel.spawned if process.end} == {"killed"}


async def test_stop_cont_and_nice(tmp_path: Path) -> None:
    """They change what ps shows, and the kernel's refusal comes out."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run --detach a")
        assert (await shell.run("stop 1"))[0] == 0
        assert kernel.processes[1].state == "STOPPED"
        assert (await shell.run("cont 1"))[0] == 0
        assert kernel.processes[1].state == "RUNNING"
        assert (await shell.run("cont 1"))[0] == 1
        assert "cont: EBUSY: process 1 is not stopped" in shell.errors
        assert (await shell.run("nice -7 1"))[0] == 0
        assert kernel.processes[1].nice == -7
        assert (await shell.run("nice 20 1"))[0] == 2
        assert "nice: '20': a nice level is a whole number from -20 to 19" in shell.errors


async def test_cat_does_not_wait(tmp_path: Path) -> None:
    """cat prints what a running process has said, and nothing for one that has said nothing."""
    gate = Gate("so far", " and on")
    silent = trio.Event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        if process.pid == 2:
            silent.set()
            await trio.sleep_forever()
        return await gate(process)

    async with open_scripted_kernel(tmp_path, program), open_shell(tmp_path) as shell:
        await shell.run("run --detach a; run --detach b")
        await gate.reached.wait()
        await silent.wait()
        assert await shell.run("cat 1") == (0, "so far\n")
        assert await shell.run("cat 1") == (0, "so far\n"), "reading consumed the output"
        assert await shell.run("cat 2") == (0, "")


@pytest.mark.parametrize(
    ("options", "shown"), [("", range(3, 13)), ("-n 2", range(11, 13)), ("-n 99", range(1, 13))]
)
async def test_tail_shows_the_last_lines(tmp_path: Path, options: str, shown: range) -> None:
    """tail prints the last 10 lines, or as many as -n says."""
    text = "\n".join(f"line {number}" for number in range(1, 13))
    async with open_scripted_kernel(tmp_path, say(text)) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run --detach a")
        await wait_until(lambda: kernel.processes[1].is_zombie)
        expected = "".join(f"line {number}\n" for number in shown)
        assert await shell.run(f"tail {options} 1") == (0, expected)


async def test_tail_follows_to_the_end(tmp_path: Path) -> None:
    """tail -f shows what is there, then what comes, each character once."""
    gate = Gate("one\ntwo é", "x\nthree")
    async with open_scripted_kernel(tmp_path, gate), open_shell(tmp_path) as shell:
        await shell.run("run --detach a")
        await gate.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "tail -f -n 1 1")
            await wait_until(lambda: shell.out.getvalue().endswith("two é"))
            gate.opened.set()
        assert shell.out.getvalue() == "1\ntwo éx\nthree\n"
