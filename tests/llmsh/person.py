"""A person at a terminal: keys for a shell in a process of its own, whose kernel runs a program."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import trio

from tests.llmsh.programs import wait_until
from tests.scripted_kernel import Program, ScriptedKernel, open_scripted_kernel

ROOT = Path(__file__).parents[2]
PROMPT = "llmsh>"
ESCAPE = "\x1b"


def open_terminal(
    folder: Path, *arguments: str, size: tuple[int, int] = (24, 100), **environment: str
) -> pexpect.spawn[str]:
    """Start llmsh on a pseudo-terminal of so many rows and columns."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")},
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm",
        "XDG_STATE_HOME": str(folder / "state"),
        **environment,
    }
    child = pexpect.spawn(
        sys.executable,
        ["-m", "tests.llmsh.patient", "--socket", str(folder / "llmos.sock"), *arguments],
        cwd=str(ROOT),
        env=environment,  # type: ignore[arg-type]
        encoding="utf-8",
        timeout=60,
        dimensions=size,
        preexec_fn=_heed_hangups,
    )
    child.delaybeforesend = None  # a prompt is drawn when its terminal modes are set: keys may come
    return child


def _heed_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup they are ignored, by whatever is started, too


async def use_shell(
    folder: Path,
    program: Program,
    start: Callable[[], pexpect.spawn[str]],
    person: Callable[[pexpect.spawn[str]], None],
) -> ScriptedKernel:
    """Let a person, in a thread, use a shell that `start` starts. Returns the kernel afterwards."""
    async with open_scripted_kernel(folder, program) as kernel:

        def use() -> None:
            child = start()
            try:
                child.expect(PROMPT)
                person(child)
            finally:
                child.close(force=True)

        await trio.to_thread.run_sync(use)
        await wait_until(lambda: not kernel.processes)
        return kernel


async def at_terminal(
    folder: Path,
    program: Program,
    person: Callable[[pexpect.spawn[str]], None],
    size: tuple[int, int] = (24, 100),
    **environment: str,
) -> ScriptedKernel:
    """Let a person use a shell on a terminal of a size. Returns the kernel afterwards."""
    return await use_shell(folder, program, lambda: open_terminal(folder, size=size, **environment), person)


def press_tab(child: pexpect.spawn[str], typed: str, completed: str) -> None:
    """Type something, see it, press Tab, and see the line with the rest of it."""
    type_keys(child, typed)
    child.send("\t")
    while not read_line(child).endswith(typed + completed):
        pass


def type_keys(child: pexpect.spawn[str], keys: str, prompt: str = PROMPT) -> None:
    """Type something, and see it, in however many pieces it was read and drawn."""
    child.send(keys)
    while keys not in read_line(child, prompt):
        pass


def read_line(child: pexpect.spawn[str], prompt: str = PROMPT) -> str:
    """The line as it stands at the prompt, without what a completion shows below it on its way."""
    child.sendcontrol("l")  # draws all again
    child.expect(r"\x1b\[2J.*?" + prompt + r"(.*?)\x1b\[\?25h")
    line, _, _ = child.match.group(1).partition("\r")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)


def finish(child: pexpect.spawn[str], line: str) -> str:
    """Enter a line and return all that comes until it is done; its echo is a part of that."""
    child.sendline(f"{line}; echo the e''nd")  # as it is typed it is not what is looked for
    child.expect_exact("the end")
    shown = str(child.before)
    child.expect(PROMPT)
    return shown
