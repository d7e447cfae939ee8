"""llmsh at a real (pseudo) terminal, driven as a person would."""

from __future__ import annotations

import signal
from pathlib import Path

import pexpect
import pytest
import trio

from tests.llmsh.person import PROMPT, at_terminal, open_terminal, press_tab, type_keys
from tests.llmsh.programs import Gate, answer_turns, say


async def test_run_streams_and_ctrl_d_leaves(tmp_path: Path) -> None:
    """Output appears while the process still runs; Ctrl-D at the prompt ends the shell with 0."""
    gate = Gate("first part", " second part")

    def person(child: pexpect.spawn[str]) -> None:
        child.sendline("run hi")
        child.expect("first part")
        trio.from_thread.run_sync(gate.opened.set)
        child.expect(" second part")
        child.expect(PROMPT)
        child.sendeof()
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0

    await at_terminal(tmp_path, gate, person)


@pytest.mark.parametrize("key", ["c", "\\"])
async def test_ctrl_c_kills_the_run_and_returns_to_the_prompt(tmp_path: Path, key: str) -> None:
    """Ctrl-C, and Ctrl-\\ too, ends the process in the foreground; the shell then runs another."""
    gate = Gate()

    def person(child: pexpect.spawn[str]) -> None:
        for _ in range(2):
            child.sendline("run hi")
            child.expect("begun")
            child.sendcontrol(key)
            child.expect_exact(f"^{key.upper()}")
            child.expect(PROMPT)
        child.sendline("ps")
        child.expect("LABEL")
        child.expect(PROMPT)
        assert "RUNNING" not in child.before

    kernel = await at_terminal(tmp_path, gate, person)
    assert [process.end.reason for process in kernel.spawned if process.end] == ["killed", "killed"]


async def test_ctrl_c_at_the_prompt_clears_the_line(tmp_path: Path) -> None:
    """A line that was not entered is dropped, and the shell stays."""

    def person(child: pexpect.spawn[str]) -> None:
        type_keys(child, "run not this")
        child.sendintr()
        child.expect(PROMPT)
        child.sendline("run that")
        child.expect("said")
        child.expect(PROMPT)

    kernel = await at_terminal(tmp_path, say("said"), person)
    assert [process.spawn.label for process in kernel.spawned] == ["that"]


async def test_ctrl_z_and_fg(tmp_path: Path) -> None:
    """Ctrl-Z stops the process and gives the prompt back; fg goes on; background ends are announced."""
    gate = Gate("before", " after")

    def person(child: pexpect.spawn[str]) -> None:
        child.sendline("run hi")
        child.expect("before")
        child.sendcontrol("z")
        child.expect(r"\[1\] Stopped  run hi")
        child.expect(PROMPT)
        child.sendline("bg")
        child.expect(r"\[1\] run hi")
        child.expect(PROMPT)
        trio.from_thread.run_sync(gate.opened.set)
        child.expect(r"\[1\] Done \(stop\)  run hi")
        child.sendline("fg")
        child.expect(" after")
        child.expect(PROMPT)

    await at_terminal(tmp_path, gate, person)


async def test_tab_completes(tmp_path: Path) -> None:
    """Tab completes a command, an option, and names that the kernel is asked for."""

    def person(child: pexpect.spawn[str]) -> None:
        press_tab(child, "mod", "els")
        child.sendline("")
        child.expect("PARAMETERS")
        child.expect(PROMPT)
        press_tab(child, "run --mo", "del")
        child.send(" ")
        press_tab(child, "scr", "ipted")
        child.sendline(" hi")
        child.expect("said")
        child.expect(PROMPT)

    kernel = await at_terminal(tmp_path, say("said"), person)
    assert kernel.spawned[0].spawn.model == "scripted"


async def test_history_outlives_the_shell(tmp_path: Path) -> None:
    """Arrow up brings back the last line, also in the next shell; the file belongs to its user alone."""

    def first(child: pexpect.spawn[str]) -> None:
        child.sendline("run remembered")
        child.expect("said")
        child.expect(PROMPT)
        child.sendeof()
        child.expect(pexpect.EOF)

    def second(child: pexpect.spawn[str]) -> None:
        child.send("\x1b[A")
        child.expect("remembered")
        child.sendline("")
        child.expect("said")
        child.expect(PROMPT)

    await at_terminal(tmp_path, say("said"), first)
    (tmp_path / "llmos.sock").unlink()
    kernel = await at_terminal(tmp_path, say("said"), second)
    assert [process.spawn.label for process in kernel.spawned] == ["remembered"]
    history = tmp_path / "state" / "llmos" / "llmsh_history"
    assert history.stat().st_mode & 0o777 == 0o600


async def test_chat_at_a_terminal(tmp_path: Path) -> None:
    """chat has a prompt of its own; Ctrl-C clears its line, Ctrl-D returns to the shell."""

    def person(child: pexpect.spawn[str]) -> None:
        child.sendline("chat")
        child.expect("chat>")
        child.sendline("hello")
        child.expect("answer one")
        child.expect("chat>")
        type_keys(child, "not sent", "chat>")
        child.sendintr()
        child.expect("chat>")
        child.sendline("more")
        child.expect("answer two")
        child.expect("chat>")
        child.sendeof()
        child.expect(PROMPT)

    kernel = await at_terminal(tmp_path, answer_turns("answer one", "answer two"), person)
    assert kernel.spawned[0].prompt.count("<|user|>") == 2


async def test_watch_leaves_no_interrupt_on_the_screen(tmp_path: Path) -> None:
    """Ctrl-C ends it; the ^C that the terminal has drawn under the table is wiped."""

    def person(child: pexpect.spawn[str]) -> None:
        child.sendline("watch -d 50 lsdev")
        child.expect("every 50")
        child.expect("sim:0")
        child.sendcontrol("c")
        child.expect_exact("^C\b\b\x1b[K")
        child.expect(PROMPT)
        child.sendline("run hi")  # the ^C of what does not redraw stays
        child.expect("begun")
        child.sendcontrol("c")
        child.expect_exact("^C\r\n")
        child.expect(PROMPT)

    await at_terminal(tmp_path, Gate(), person)


async def test_top_redraws_until_q(tmp_path: Path) -> None:
    """top draws frames on the alternate screen, and leaves at q, at Ctrl-C, or after -n of them."""

    def person(child: pexpect.spawn[str]) -> None:
        child.sendline("top -d 0.25")
        child.expect(r"\x1b\[\?1049h")
        child.expect("since boot: 0 spawned")
        child.expect("since boot: 0 spawned")
        child.send("q")
        child.expect(r"\x1b\[\?1049l")
        child.expect(PROMPT)
        child.sendline("top")
        child.expect("since boot")
        child.sendintr()
        child.expect(r"\x1b\[\?1049l")
        child.expect(PROMPT)
        child.sendline("top -n 2 -d 0.25")
        child.expect(r"\x1b\[\?1049h")
        child.expect("119.0 MiB private")
        child.expect("TENANT")
        child.expect(r"\x1b\[\?1049l")
        child.expect(PROMPT)
        child.sendline("run hi")
        child.expect("said")

    await at_terminal(tmp_path, say("said"), person)


async def test_killed_terminal_takes_its_processes_along(tmp_path: Path) -> None:
    """When the window closes, the shell ends, and so do its processes."""
    gate = Gate()

    def person(child: pexpect.spawn[str]) -> None:
        child.sendline("run hi &")
        child.expect(r"\[1\] 1")
        child.expect(PROMPT)
        child.kill(signal.SIGHUP)
        child.expect(pexpect.EOF)

    kernel = await at_terminal(tmp_path, gate, person)
    assert kernel.spawned[0].end is not None


@pytest.mark.parametrize(("commands", "code"), [("nonsense", 2), ("exit 5", 5)])
async def test_c_at_a_terminal(tmp_path: Path, commands: str, code: int) -> None:
    """-c on a terminal shows no prompt, and exits with its command's code."""

    def use() -> None:
        child = open_terminal(tmp_path, "-c", commands)
        child.expect(pexpect.EOF)
        assert PROMPT not in child.before
        child.close()
        assert child.exitstatus == code

    await trio.to_thread.run_sync(use)
