"""time, watch and history."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shell.llmsh.commands.prefix import describe_usage
from syscalls.process import Usage
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import say
from tests.scripted_kernel import open_scripted_kernel


async def test_time_tells_what_a_command_took(tmp_path: Path) -> None:
    """The command's output and exit code are its own; the sum is on standard error."""
    async with open_scripted_kernel(tmp_path, say("abc")) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run("time run --max-tokens 9 hi") == (0, "abc\n")
        assert kernel.spawned[0].spawn.max_tokens == 9  # the option is run's, not time's
        (line,) = shell.errors.splitlines()
        assert re.fullmatch(
            r"\d+ m?s · 1 process · \d+ prompt tokens \(\d+ cached\) · 4 output tokens.*", line
        ), line
        assert (await shell.run("time run --n 3 hi | wc"))[0] == 0
        assert "3 processes" in shell.errors.splitlines()[-1]
        assert not shell.shell.meters


async def test_time_of_what_fails(tmp_path: Path) -> None:
    """The failure is reported as without it, and so is what it took."""
    async with open_scripted_kernel(tmp_path, say("abc")), open_shell(tmp_path) as shell:
        code, _ = await shell.run("time kill 77")
        assert code == 1
        *failure, took = shell.errors.splitlines()
        assert failure[0].startswith("kill: ")
        assert re.fullmatch(r"\d+ m?s", took)
        assert (await shell.run("time tmie"))[0] == 2
        assert "did you mean" in shell.errors.splitlines()[-1]


async def test_nested_times_count_the_same_processes(tmp_path: Path) -> None:
    """Both tell of the inner command's process."""
    async with open_scripted_kernel(tmp_path, say("abc")), open_shell(tmp_path) as shell:
        await shell.run("time time run hi")
        assert [line.count("1 process") for line in shell.errors.splitlines()] == [1, 1]


async def test_watch_runs_again(tmp_path: Path) -> None:
    """So many times, the code being the last one's; in a pipe nothing is cleared."""
    async with open_scripted_kernel(tmp_path, say("abc")), open_shell(tmp_path) as shell:
        code, out = await shell.run("watch -n 3 -d 0.25 echo hi")
        assert (code, out) == (0, "hi\nhi\nhi\n")
        assert (await shell.run("watch -n 2 -d 0.25 kill 77"))[0] == 1
        assert (await shell.run("watch -d 0 ps"))[0] == 2


async def test_history_lists_lines(tmp_path: Path) -> None:
    """Numbered, all or the last ones, or as JSON."""
    async with open_scripted_kernel(tmp_path, say("abc")), open_shell(tmp_path) as shell:
        shell.terminal.past += ["ps", "run 'a b'"]
        assert await shell.run("history") == (0, "    1  ps\n    2  run 'a b'\n")
        assert await shell.run("history -n 1") == (0, "    2  run 'a b'\n")
        assert json.loads((await shell.run("history --json"))[1]) == ["ps", "run 'a b'"]


@pytest.mark.parametrize(("count", "expected"), [(1, "1 process ·"), (2, "2 processes ·")])
def test_usage_in_a_line(count: int, expected: str) -> None:
    """Sums, and the rate of each process."""
    usage = Usage(
        num_prompt_tokens=10, num_cached_tokens=4, num_output_tokens=20, queued_seconds=0.0,
        first_token_seconds=0.5, running_seconds=2.0, num_preemptions=0,
    )  # fmt: skip
    line = describe_usage(3.0, [usage] * count)
    assert line.startswith("3.0 s · " + expected)
    assert f"{10 * count} prompt tokens ({4 * count} cached)" in line
    assert f"{20 * count} output tokens, 10.0/s each" in line
    assert line.endswith("first token after 500 ms")
