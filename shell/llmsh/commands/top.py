"""top: the system at a glance, redrawn in place."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from shell.llmsh.commands.process import make_process_table
from shell.llmsh.commands.system import make_device_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.render import format_seconds
from shell.llmsh.table import JSON, Command
from syscalls.client import Client
from syscalls.process import ProcessInfo
from syscalls.system import DeviceInfo, StatisticsInfo

DEFAULT_SECONDS = 0.5
STATE_ORDER = ("RUNNING", "READY", "BLOCKED", "STOPPED", "EMBRYO", "ZOMBIE")


def read_interval(text: str) -> float:
    """Convert the time between two frames. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.25 <= seconds <= 3600:  # a frame costs 14 ms of processor time
        raise ValueError("seconds from 0.25 to 3600 are needed")
    return seconds


@attrs.frozen
class Snapshot:
    """What one frame shows."""

    statistics: StatisticsInfo
    devices: tuple[DeviceInfo, ...]
    processes: tuple[ProcessInfo, ...]


async def take_snapshot(client: Client) -> Snapshot:
    """Ask the kernel; everyone's processes when it allows that."""
    return Snapshot(
        await client.statistics(),
        await client.devices(),
        await client.ps(everyone=client.welcome.admin),
    )


def draw(now: Snapshot, before: Snapshot | None, max_rows: int | None = None) -> RenderableType:
    """Lay out a frame. Rates are over the time since `before`.

    Args:
        max_rows: most processes to list; None: all.
    """
    counters = now.statistics
    used = counters.num_frames - counters.num_free_frames - counters.num_cached_frames
    head = (
        f"llmos {counters.version}, up {format_seconds(counters.uptime_seconds)}"
        f"{', draining' if counters.draining else ''}; sessions: {counters.num_sessions}\n"
        f"processes: {counters.num_processes}, {counters.num_running} running, "
        f"{counters.num_waiting} waiting\n"
        f"since boot: {counters.num_spawned} spawned, {counters.num_exited} exited, "
        f"{counters.num_preemptions} preempted\n"
        f"tokens: {counters.num_prompt_tokens} in, {counters.num_cached_tokens} of them cached, "
        f"{counters.num_output_tokens} out{_rates(now, before)}\n"
        f"frames: {counters.num_frames}, {used} used, {counters.num_cached_frames} cached, "
        f"{counters.num_free_frames} free"
    )
    processes = sorted(now.processes, key=_importance)[:max_rows]
    return Group(
        Text(head),
        Text(),
        make_device_table(now.devices),
        Text(),
        make_process_table(processes, with_tenant=True),
    )


def _rates(now: Snapshot, before: Snapshot | None) -> str:
    if before is None:
        return ""
    seconds = now.statistics.uptime_seconds - before.statistics.uptime_seconds
    if seconds <= 0:
        return ""
    rate = (now.statistics.num_output_tokens - before.statistics.num_output_tokens) / seconds
    return f" ({rate:.0f}/s)"


def _importance(info: ProcessInfo) -> tuple[int, int]:
    state = info.state.partition("(")[0]
    rank = STATE_ORDER.index(state) if state in STATE_ORDER else len(STATE_ORDER)
    return rank, info.pid


async def top(shell: Shell, arguments: Arguments) -> int:
    """`top`: redraw until q or Ctrl-C; one frame when nobody looks."""
    client = await shell.client()
    if shell.is_json(arguments):
        shell.screen.json(attrs.asdict(await take_snapshot(client), recurse=False))
    elif not shell.screen.is_terminal:
        shell.screen.show(draw(await take_snapshot(client), None))
    else:
        await _redraw(shell, client, arguments["delay"] or DEFAULT_SECONDS)
    return 0


async def _redraw(shell: Shell, client: Client, seconds: float) -> None:
    console = shell.screen.console()
    before: Snapshot | None = None
    with _keys_at_once() as has_keys:
        with Live(
            console=console, auto_refresh=False, screen=True, redirect_stdout=False, redirect_stderr=False
        ) as live:
            while True:
                now = await take_snapshot(client)
                num_other_lines = 10 + len(now.devices)
                live.update(draw(now, before, max(1, console.height - num_other_lines)), refresh=True)
                before = now
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
        "",
        "Show the system, its devices and processes, redrawn in place. 'q' or Ctrl-C leaves. In a pipe it "
        "prints one frame.",
        top,
        (
            Option(
                ("--delay", "-d"),
                f"time between frames; {DEFAULT_SECONDS} by default",
                "SECONDS",
                read_interval,
            ),
            JSON,
        ),
    ),
)
