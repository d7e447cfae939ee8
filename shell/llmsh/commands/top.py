"""top: the system at a glance, redrawn in place."""

from __future__ import annotations

import itertools
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio
from rich.live import Live

from shell.llmsh.commands.generation import read_count
from shell.llmsh.commands.top_frame import Snapshot, draw, take_snapshot
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.table import JSON, Command
from syscalls.client import Client

DEFAULT_SECONDS = 0.5


def read_interval(text: str) -> float:
    """Convert the time between two frames. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.25 <= seconds <= 3600:  # a frame costs 14 ms of processor time
        raise ValueError("seconds from 0.25 to 3600 are needed")
    return seconds


async def top(shell: Shell, arguments: Arguments) -> int:
    """`top`: redraw until q or Ctrl-C; in a pipe a frame, or as many as were asked for."""
    client = await shell.client()
    seconds, num_frames = arguments["delay"] or DEFAULT_SECONDS, arguments["frames"]
    if shell.is_json(arguments):
        shell.screen.json(attrs.asdict(await take_snapshot(client), recurse=False))
    elif shell.screen.can_redraw:
        await _redraw(shell, client, seconds, num_frames)
    else:
        before: Snapshot | None = None
        for number in range(num_frames or 1):
            if number:
                await trio.sleep(seconds)
                shell.screen.line()
            now = await take_snapshot(client)
            shell.screen.show(draw(now, before))
            before = now
    return 0


async def _redraw(shell: Shell, client: Client, seconds: float, num_frames: int | None) -> None:
    console = shell.screen.console()
    before: Snapshot | None = None
    with (
        _keys_at_once() as has_keys,
        Live(
            console=console, auto_refresh=False, screen=True, redirect_stdout=False, redirect_stderr=False
        ) as live,
    ):
        for number in itertools.count(1):
            now = await take_snapshot(client)
            live.update(draw(now, before), refresh=True)
            before = now
            if number == num_frames:
                return
            with trio.move_on_after(seconds):
                if not has_keys:
                    await trio.sleep(seconds)
                elif await _read_key() in ("q", ""):
                    return


async def _read_key() -> str:
    await trio.lowlevel.wait_readable(sys.stdin.fileno())
    return os.read(sys.stdin.fileno(), 64).decode(errors="replace")[:1]


@contextmanager
def _keys_at_once() -> Iterator[bool]:
    """Let the terminal hand keys over as they are typed, without showing them. Yields whether it is one."""
    if not sys.stdin.isatty():
        yield False
        return
    modes = termios.tcgetattr(sys.stdin.fileno())
    tty.setcbreak(sys.stdin.fileno())
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, modes)


COMMANDS = (
    Command(
        "top",
        summary="Show the devices, tenants and processes, redrawn in place",
        details=(
            "A tenant's share is of the tokens since the frame before, and overall since boot; the fastest "
            "processes come first. 'q' or Ctrl-C leaves. In a pipe, and where the cursor cannot be moved, it "
            "prints one frame."
        ),
        function=top,
        options=(
            Option(
                ("--delay", "-d"),
                f"time between frames; {DEFAULT_SECONDS} by default",
                "SECONDS",
                read_interval,
            ),
            Option(("--frames", "-n"), "leave after so many", "N", read_count),
            JSON,
        ),
        examples=(
            ("top", "until q"),
            ("top -n 2 -d 1 > frames.txt", "two frames, a second apart, into a file"),
        ),
    ),
)
