"""Pipes, redirection, variables and conditions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shell.llmsh.execute import join_codes
from shell.llmsh.pipe import PIPE_CHARACTERS
from syscalls.process import ExitStatus
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate, say, wait_until
from tests.scripted_kernel import END, STOPPED_BY_MODEL, ScriptedProcess, open_scripted_kernel


async def quote_prompt(process: ScriptedProcess) -> ExitStatus:
    """Say the prompt in brackets."""
    await process.say(f"[{process.spawn.label}]" if "{}" not in process.spawn.label else "")
    await process.say(process.prompt.replace("<|user|>", "").replace("<|end|><|assistant|>", ""))
    await process.emit(END)
    return STOPPED_BY_MODEL


async def test_output_becomes_the_next_prompt(tmp_path: Path) -> None:
    """{} stands for what was piped in; without it the input follows the prompt, or is the prompt."""
    async with open_scripted_kernel(tmp_path, say("the answer")) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run('run one | run "sum up: {} ({})"') == (0, "the answer\n")
        await shell.run("run two | run 'sum up'")
        await shell.run("run three | run")
        prompts = [process.prompt.partition("<|end|>")[0] for process in kernel.spawned]
        assert prompts == [
            "<|user|>one", "<|user|>sum up: the answer (the answer)",
            "<|user|>two", "<|user|>sum up\n\nthe answer",
            "<|user|>three", "<|user|>the answer",
        ]  # fmt: skip
        assert not kernel.processes
        assert list(shell.shell.jobs) == []


async def test_text_streams_through_filters(tmp_path: Path) -> None:
    """A filter passes a line on while the process still runs."""
    gate = Gate("first\nsecond", " line\n")
    async with open_scripted_kernel(tmp_path, gate), open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "run hi | grep i | cat")
            await wait_until(lambda: shell.out.getvalue() == "first\n")
            gate.opened.set()
    assert (shell.shell.status, shell.out.getvalue()) == (0, "first\nsecond line\n")


async def test_filters(tmp_path: Path) -> None:
    """grep, head, tail, wc, tee and cat do what they do elsewhere, to listings and files too."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        file = tmp_path / "animals"
        file.write_text("cat\nDog\nbird\n")
        assert await shell.run(f"grep -i d < {file}") == (0, "Dog\nbird\n")
        assert await shell.run(f"grep -v d < {file}") == (0, "cat\nDog\n")
        assert await shell.run(f"grep -c x < {file}") == (1, "0\n")
        assert await shell.run(f"head -n 1 < {file}") == (0, "cat\n")
        assert await shell.run(f"head -2 < {file}") == (0, "cat\nDog\n")
        for wrong in ("head 2", "head -0", "head -n 1 -2"):
            assert (await shell.run(f"{wrong} < {file}"))[0] == 2
        assert shell.errors.count("head -n N, or head -N") == 3
        assert await shell.run(f"tail -n 1 < {file}") == (0, "bird\n")
        assert await shell.run(f"wc < {file}") == (0, "3 3 13\n")
        assert json.loads((await shell.run(f"wc --json < {file}"))[1])["words"] == 3
        assert await shell.run(f"cat < {file} | tee {tmp_path}/copy | tail -n 2") == (0, "Dog\nbird\n")
        assert (tmp_path / "copy").read_text() == file.read_text()
        assert (await shell.run("lsdev | grep -c sim:0"))[1] == "1\n"
        assert (await shell.run(f"grep '(' < {file}"))[0] == 2
        assert "is no regular expression" in shell.errors


async def test_files(tmp_path: Path) -> None:
    """> replaces, >> appends, < reads; a file that cannot be opened is named, and nothing runs."""
    async with open_scripted_kernel(tmp_path, say("said")) as kernel, open_shell(tmp_path) as shell:
        file = tmp_path / "out"
        assert await shell.run(f"run a > {file}; run b >> {file}") == (0, "")
        assert file.read_text() == "said\nsaid\n"
        assert await shell.run(f"echo anew > {file}; run 'what is {{}}?' < {file}") == (0, "said\n")
        assert kernel.spawned[-1].prompt.startswith("<|user|>what is anew?<|end|>")
        assert (await shell.run("run x > /nowhere/file"))[0] == 1
        assert (await shell.run("run x < /nowhere/file > /dev/null"))[0] == 1
        assert shell.errors.count("run: /nowhere/file: No such file or directory") == 2
        assert len(kernel.spawned) == 3


async def test_head_ends_the_process_that_writes(tmp_path: Path) -> None:
    """When a reader has enough, the process before it is killed; that is no failure."""
    gate = Gate("one\ntwo\n", "never seen")
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "run hi | head -n 1")
            await wait_until(lambda: "one" in shell.out.getvalue())
            gate.opened.set()
        assert (shell.shell.status, shell.out.getvalue(), shell.errors) == (0, "one\n", "")
        assert not kernel.processes


async def test_a_listing_whose_reader_has_failed(tmp_path: Path) -> None:
    """Only the reader's error is told, and the shell goes on."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        assert (await shell.run("ps | grep '('"))[0] == 2
        assert shell.errors.count("\n") == 1
        assert "is no regular expression" in shell.errors
        assert await shell.run("echo on") == (0, "on\n")


async def test_ctrl_c_kills_the_whole_pipe(tmp_path: Path) -> None:
    """Every process of the job goes; the shell goes on."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "run one | run 'two {}'; ps")
            await gate.reached.wait()
            await wait_until(lambda: len(kernel.calls) > 5)
            shell.shell.interrupt()
        assert shell.out.getvalue() == "^C\n"
        assert shell.shell.status == 130
        assert not kernel.processes
        assert len(kernel.spawned) == 1
        assert await shell.run("jobs") == (0, "")


async def test_ctrl_z_stops_the_pipe_and_fg_goes_on(tmp_path: Path) -> None:
    """The processes are one job: stopped together, continued together, and the text is whole."""
    gate = Gate("half", " and half")
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "run one | cat")
            await wait_until(lambda: "half" in shell.out.getvalue())
            shell.shell.suspend()
        assert kernel.processes[1].state == "STOPPED"
        assert (await shell.run("jobs"))[1].splitlines()[1].split() == [
            "%1",
            "1",
            "STOPPED",
            *["run", "one", "|", "cat"],
        ]
        gate.opened.set()
        assert await shell.run("fg") == (0, " and half\n")
        assert not kernel.processes


async def test_a_pipe_in_the_background(tmp_path: Path) -> None:
    """& makes one job of it; what it writes waits for fg, and a file gets it at once."""
    async with (
        open_scripted_kernel(tmp_path, say("said")),
        open_shell(tmp_path, is_interactive=True) as shell,
    ):
        assert (await shell.run("run a | cat &"))[1] == "[1]\n"
        job = shell.shell.jobs.find("%1")
        await wait_until(lambda: job.has_ended)
        assert (await shell.run("jobs --json"))[1].count('"Done"') == 1
        assert await shell.run("fg %1") == (0, "said\n")
        await shell.run(f"run b > {tmp_path}/file &")
        assert await shell.run("wait") == (0, "job %1: exit code 0\n")
        assert (tmp_path / "file").read_text() == "said\n"


async def test_kill_by_job_number_ends_a_pipe(tmp_path: Path) -> None:
    """kill %N ends all that the pipe runs and would run."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run a | run b &")
        await gate.reached.wait()
        assert (await shell.run("kill %1"))[0] == 0
        assert not kernel.processes
        assert len(kernel.spawned) == 1
        assert await shell.run("jobs") == (0, "")


async def test_stop_and_cont_are_of_the_whole_pipe(tmp_path: Path) -> None:
    """Of processes that are still to come, too: they wait for cont; and kill ends one that has none."""
    gate = Gate("begun\n", "over\n")
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        assert (await shell.run("run a | run b & stop %1"))[0] == 0  # before there is a process
        await wait_until(lambda: kernel.processes and kernel.processes[1].state == "STOPPED")
        assert "STOPPED" in (await shell.run("jobs"))[1]
        assert (await shell.run("cont %1"))[0] == 0
        gate.opened.set()
        code, out = await shell.run("fg %1")
        assert (code, out) == (0, "begun\nover\n")
        assert ["over" in process.prompt for process in kernel.spawned] == [True, True]
        assert (await shell.run("dmesg -f | grep nothing & kill %1; jobs")) == (0, "[1]\n")


async def test_a_slow_reader_holds_the_writer_up(tmp_path: Path) -> None:
    """A background pipe that nobody looks at reads no more of its process than it can hold."""
    text = "x" * (3 * PIPE_CHARACTERS)
    async with open_scripted_kernel(tmp_path, say(text)), open_shell(tmp_path) as shell:
        file = tmp_path / "long"
        file.write_text(text)
        await shell.run(f"cat < {file} | cat &")
        job = shell.shell.jobs.find("%1")
        await wait_until(lambda: job.output.num_unread >= PIPE_CHARACTERS)
        assert not job.has_ended
        code, out = await shell.run("fg")
        assert (code, out.strip()) == (0, text)


async def test_each_line(tmp_path: Path) -> None:
    """--each-line makes a process of every line, blank ones left out; outputs keep the lines' order."""
    async with open_scripted_kernel(tmp_path, quote_prompt) as kernel, open_shell(tmp_path) as shell:
        file = tmp_path / "lines"
        file.write_text("one\n\ntwo\nthree")
        code, out = await shell.run(f"run --each-line 'say {{}}' < {file}")
        assert (code, out) == (0, "say one\nsay two\nsay three\n")
        assert not kernel.processes
        assert (await shell.run("run --each-line hi"))[0] == 2


async def test_each_line_starts_before_its_input_is_over(tmp_path: Path) -> None:
    """A line's process runs while the process that writes the lines is still at it; Ctrl-C ends both."""
    gate = Gate("line\nnext", " one\n")

    async def program(process: ScriptedProcess) -> ExitStatus:
        return await (gate if process.pid == 1 else say("x"))(process)

    async with open_scripted_kernel(tmp_path, program) as kernel, open_shell(tmp_path) as shell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "run hi | run --each-line '{}'")
            await wait_until(lambda: shell.out.getvalue() == "x\n")
            shell.shell.interrupt()
        assert shell.shell.status == 130
        assert not kernel.processes


async def test_variables(tmp_path: Path) -> None:
    """They hold text, answers of processes too; one that is not set is an error with a suggestion."""
    async with open_scripted_kernel(tmp_path, say("Rome\n")) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run("a='x  y' b=2; echo $a ${b}nd '$a'") == (0, "x  y 2nd $a\n")
        assert await shell.run('city=$(run hi); run "near $city?" > /dev/null; echo $?') == (0, "0\n")
        assert kernel.spawned[1].prompt.startswith("<|user|>near Rome?<|end|>")
        assert json.loads((await shell.run("set --json"))[1]) == {"a": "x  y", "b": "2", "city": "Rome"}
        assert (await shell.run("echo $ctiy"))[0] == 2
        assert "no variable 'ctiy': did you mean 'city'?" in shell.errors
        assert (await shell.run("unset city; unset city"))[0] == 2
        assert (await shell.run("a=1 echo hi"))[0] == 2
        await shell.run("run hi &")
        assert (await shell.run("echo $!"))[1] == "3\n"


async def test_a_substitution_that_fails_stops_the_command(tmp_path: Path) -> None:
    """A prompt with a hole in it is not run."""
    async with open_scripted_kernel(tmp_path, say("", ExitStatus("killed"))) as kernel:
        async with open_shell(tmp_path) as shell:
            assert (await shell.run("run again $(run first)"))[0] == 1
            assert "ended with exit code 137" in shell.errors
            assert len(kernel.spawned) == 1


async def test_conditions(tmp_path: Path) -> None:
    """&& goes on after 0, || after anything else."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        text = "stat 9 && echo a || echo b; echo c && echo d || echo e"
        assert await shell.run(text) == (0, "b\nc\nd\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ps | lsdev", "lsdev: takes no input; these do: run, cat"),
        ("ps | chat", "chat: needs the terminal"),
        ("chat > x", "chat: needs the terminal"),
        ("cat", "cat: there is no input"),
        ("run", "run: a prompt or an input is missing"),
        ("ps | gerp x", "llmsh: unknown command 'gerp': did you mean 'grep'?"),
        ("cat < ''", "cat: the file name after '<' is empty"),
        ("ps &", "ps: cannot run in the background"),
    ],
)
async def test_wrong_pipes_are_explained(tmp_path: Path, text: str, message: str) -> None:
    """The error names the command and what it lacks; nothing has run."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        assert (await shell.run(text))[0] == 2
        assert shell.errors.startswith(message)


async def test_an_empty_input_runs_nothing(tmp_path: Path) -> None:
    """A model is not asked to sum up nothing."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert (await shell.run("echo | run 'sum up: {}'"))[0] == 1
        assert "the input is empty" in shell.errors
        assert not kernel.spawned


async def test_the_exit_code_is_of_the_last_command_that_failed(tmp_path: Path) -> None:
    """A process that is killed makes the pipe fail although its reader is content."""
    async with open_scripted_kernel(tmp_path, say("x", ExitStatus("killed"))), open_shell(tmp_path) as shell:
        assert await shell.run("run hi | cat") == (137, "x\n")


@given(st.lists(st.sampled_from([0, 1, 2, 137, 141]), min_size=1, max_size=5))
def test_join_codes(codes: list[int]) -> None:
    """The reference: go from the end to the beginning, and skip readers that have left."""
    expected = 0
    for number, code in reversed(list(enumerate(codes))):
        if code and (code != 141 or number == len(codes) - 1):
            expected = code
            break
    assert join_codes(codes) == expected
