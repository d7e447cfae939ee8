"""llmsh where terminals differ: narrow, resized, dumb, colourless, inside tmux, and half a pipe."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pexpect
import pytest
import trio

from tests.llmsh.person import ESCAPE, PROMPT, at_terminal, finish, press_tab, type_keys
from tests.llmsh.programs import Gate, say, wait_until
from tests.scripted_kernel import open_scripted_kernel

COLOUR = r"\x1b\[[0-9;]*3[0-7]"


async def test_colours_and_no_colour(tmp_path: Path) -> None:
    """States have colours on a terminal, and with NO_COLOR they have none."""
    for environment, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        folder = tmp_path / str(is_coloured)
        folder.mkdir()

        def person(child: pexpect.spawn[str], is_coloured: bool = is_coloured) -> None:
            shown = finish(child, "lsdev")
            assert "ready" in shown
            assert bool(re.search(COLOUR, shown)) == is_coloured

        await at_terminal(folder, say("said"), person, **environment)


async def test_a_dumb_terminal(tmp_path: Path) -> None:
    """Nothing is redrawn or coloured: lines are read and written, top prints frames, clear does nothing."""

    def person(child: pexpect.spawn[str]) -> None:
        shown = ""
        for line in ("run hi", "lsdev", "top -n 2 -d 0.25", "watch -n 2 -d 0.25 whoami", "clear"):
            shown += finish(child, line)
        assert "said" in shown
        assert shown.count("since boot") == 2
        assert shown.count("tester") >= 2
        assert ESCAPE not in shown
        child.sendline("exit")
        child.expect(pexpect.EOF)

    await at_terminal(tmp_path, say("said"), person, TERM="dumb")


async def test_a_narrow_terminal(tmp_path: Path) -> None:
    """No line of a table is wider than the terminal, and pids and states are whole."""
    gate = Gate()

    def person(child: pexpect.spawn[str]) -> None:
        finish(child, "run a story &")
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", finish(child, "ps"))
        lines = [line.rstrip() for line in shown.splitlines()]
        start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["PID", "STATE"])
        header, row = lines[start : start + 2]
        assert row.split()[:2] == ["1", "RUNNING"]
        assert max(len(header), len(row)) <= 36
        trio.from_thread.run_sync(gate.opened.set)

    await at_terminal(tmp_path, gate, person, size=(12, 36), COLUMNS="200")  # as it was once


async def test_ctrl_c_and_ctrl_z_in_a_pipe(tmp_path: Path) -> None:
    """Ctrl-Z stops a pipe as one job, fg goes on with it, and Ctrl-C ends it with its processes."""
    gate = Gate("begun\n", "over\n")

    def person(child: pexpect.spawn[str]) -> None:
        child.sendline("run hi | tee " + shlex.quote(str(tmp_path / "copy")))
        child.expect("begun")
        child.sendcontrol("z")
        child.expect(r"\[1\] Stopped")
        child.expect(PROMPT)
        assert "STOPPED" in finish(child, "jobs")
        child.sendline("fg")
        child.expect_exact("\x1b[2mrun hi")  # what goes on
        child.sendintr()
        child.expect(r"\^C")
        child.expect(PROMPT)
        assert "STOPPED" not in finish(child, "ps")
        assert "JOB" not in finish(child, "jobs")
        finish(child, "run hi | tee /dev/null &")
        child.sendline("fg")
        child.expect_exact("\x1b[2mrun hi")  # it is in the foreground before it can end
        trio.from_thread.run_sync(gate.opened.set)
        child.expect("over")
        child.expect(PROMPT)
        assert "Done" not in str(child.before)  # that was seen

    kernel = await at_terminal(tmp_path, gate, person)
    assert [process.end.reason for process in kernel.spawned if process.end] == ["killed", "stop"]


async def test_ctrl_d_with_running_jobs_warns_once(tmp_path: Path) -> None:
    """The first Ctrl-D names the jobs and stays; the second leaves, and their processes end."""
    gate = Gate()

    def person(child: pexpect.spawn[str]) -> None:
        finish(child, "run hi &")
        child.sendeof()
        child.expect("jobs are running: %1; 'exit' again ends them")
        child.expect(PROMPT)
        child.sendeof()
        child.expect(pexpect.EOF)

    kernel = await at_terminal(tmp_path, gate, person)
    assert kernel.spawned[0].end is not None


async def test_keys_where_there_is_nothing_to_stop(tmp_path: Path) -> None:
    """Ctrl-Z at the prompt and in watch does nothing, nor Ctrl-D amid a line; Ctrl-C ends what follows."""
    gate = Gate()

    def person(child: pexpect.spawn[str]) -> None:
        child.sendcontrol("z")
        finish(child, "run hi &")
        child.sendline("watch -d 0.25 jobs")
        child.expect("RUNNING")
        child.sendcontrol("z")
        child.expect("RUNNING")
        child.sendintr()
        child.expect(PROMPT)
        child.sendline("cat 1; tail -f 1")
        child.expect("begun")
        child.sendintr()
        child.expect(PROMPT)
        type_keys(child, "who")
        child.sendeof()
        child.sendline("ami")
        child.expect("tester")
        child.expect(PROMPT)

    await at_terminal(tmp_path, gate, person)


async def test_tab_completes_values_and_pages(tmp_path: Path) -> None:
    """Tab completes pages of the manual, tenants of an option, and jobs."""
    gate = Gate()

    def person(child: pexpect.spawn[str]) -> None:
        press_tab(child, "man stra", "ce")
        child.sendline("")
        child.expect("follow a process")
        child.expect(PROMPT)
        finish(child, "run hi &")
        press_tab(child, "why %", "1")
        child.sendline("")
        child.expect("verdict")
        child.expect(PROMPT)

    await at_terminal(tmp_path, gate, person)


async def test_half_a_terminal(tmp_path: Path) -> None:
    """With its output in a pipe the shell asks and colours nothing, though keys come from a person."""
    async with open_scripted_kernel(tmp_path, say("said")):
        command = f"{sys.executable} -m shell.llmsh.main --socket {tmp_path / 'llmos.sock'} | cat"

        def use() -> None:
            child = pexpect.spawn("/bin/sh", ["-c", command], encoding="utf-8", timeout=60)
            child.setecho(False)
            child.sendline("run hi")
            child.sendline("lsdev")
            child.sendline("top")
            child.sendeof()
            child.expect(pexpect.EOF)
            assert "said" in child.before
            assert "since boot" in child.before
            assert PROMPT not in child.before
            assert ESCAPE not in child.before
            child.close()

        await trio.to_thread.run_sync(use)


# --- tmux: what is really on the screen ------------------------------------------------------------------


@attrs.define(eq=False)
class Tmux:
    """A screen of tmux, on a server of its own."""

    socket: Path

    def __call__(self, *arguments: str) -> str:
        """Run a tmux command and return what it prints."""
        command = ["tmux", "-S", str(self.socket), "-f", "/dev/null", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def type(self, line: str) -> None:
        """Type a line and press Enter."""
        self("send-keys", "-l", line)
        self("send-keys", "Enter")

    def wait_for(self, condition: Callable[[str], object]) -> str:
        """Return the screen once it is as wanted; fails after a minute or so."""
        for _ in range(1200):
            screen = self("capture-pane", "-p")
            if condition(screen):
                return screen
            time.sleep(0.05)
        raise AssertionError(f"this is on the screen:\n{screen}")


@contextmanager
def open_tmux(folder: Path, columns: int, rows: int) -> Iterator[Tmux]:
    """Run a shell inside tmux for as long as the block runs."""
    tmux = Tmux(folder / "tmux.sock")
    shell = f"{sys.executable} -m shell.llmsh.main --socket {folder / 'llmos.sock'}"
    state = f"XDG_STATE_HOME={folder / 'state'}"
    path = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), "env", state, path, "sh", "-c", shell)
    try:
        tmux.wait_for(lambda screen: PROMPT in screen)
        yield tmux
    finally:
        tmux("kill-server")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
async def test_inside_tmux(tmp_path: Path) -> None:
    """top fits the screen, follows a change of its size, and leaves what was there before."""
    gate = Gate()

    def use() -> None:
        with open_tmux(tmp_path, 80, 24) as tmux:
            tmux.type("run --n 8 hi &")
            tmux.wait_for(lambda screen: "[1] 1 2 3 4 5 6 7 8" in screen)
            tmux.type("top -d 0.25")
            wide = tmux.wait_for(lambda screen: screen.count("RUNNING") == 8)
            assert wide.startswith("llmos ")
            assert "LABEL" in wide
            tmux("resize-window", "-x", "40", "-y", "18")
            narrow = tmux.wait_for(lambda screen: screen.startswith("llmos ") and "LABEL" not in screen)
            lines = narrow.rstrip("\n").splitlines()
            assert max(map(len, lines)) <= 40
            assert next(line.split()[:2] for line in lines if "RUNNING" in line) == ["1", "tester"]
            tmux("resize-window", "-x", "24", "-y", "9")  # what is above the processes gets half of it
            tmux.wait_for(
                lambda screen: screen.startswith("llmos ") and "\nPID" in screen and "\n  1 " in screen
            )
            tmux("resize-window", "-x", "80", "-y", "24")
            tmux("send-keys", "q")
            back = tmux.wait_for(lambda screen: "since boot" not in screen and screen.count(PROMPT) >= 2)
            assert "[1] 1 2 3 4 5 6 7 8" in back
            tmux.type("exit")
            tmux.wait_for(lambda screen: "jobs are running" in screen)

    async with open_scripted_kernel(tmp_path, gate) as kernel:
        await trio.to_thread.run_sync(use)
        await wait_until(lambda: not kernel.processes)
