"""llmsh: the shell of llmos. Arguments, threads and signals; everything else is in `loop`."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import outcome
import trio

from shell.llmsh.commands import TABLE
from shell.llmsh.completion import Candidate, look_up_names
from shell.llmsh.connection import Connection
from shell.llmsh.errors import EXIT_BROKEN_PIPE, EXIT_USAGE
from shell.llmsh.execute import run_pipeline
from shell.llmsh.loop import Shell
from shell.llmsh.overview import SUMMARY
from shell.llmsh.render import Screen
from shell.llmsh.terminal import PipeTerminal, Terminal, repair
from syscalls.paths import default_socket_path, state_folder


@attrs.frozen
class Settings:
    """What the command line asked for."""

    socket_path: Path
    script: str | None  # None: lines from the terminal
    wants_json: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the shell. Returns its exit code."""
    prepare_streams()
    settings = read_settings(sys.argv[1:] if argv is None else argv)
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            return _run_at_prompt(settings)
        code = trio.run(_run_in_pipe, settings)
        sys.stdout.flush()  # here, where a reader that has left is noticed; at exit it would be code 120
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing to flush at exit
        return EXIT_BROKEN_PIPE


def prepare_streams() -> None:
    """Make the three streams of the process usable, however they came.

    One that is closed leads nowhere, in this order: the lowest number that is free would else be that of the
    next file or socket. What the locale's encoding has no character for is written as a question mark.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for good
    if isinstance(sys.stdout, io.TextIOWrapper) and codecs.lookup(sys.stdout.encoding).name != "utf-8":
        sys.stdout.reconfigure(errors="replace")


def read_settings(argv: Sequence[str]) -> Settings:
    """Read the arguments. Exits with 2 when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="llmsh",
        description=f"{SUMMARY}.",
        epilog="llmsh -c help lists the commands, llmsh -c man tells more.",
    )
    parser.add_argument("--socket", type=Path, metavar="PATH", help="the kernel's socket")
    parser.add_argument("--json", action="store_true", help="print listings as JSON")
    parser.add_argument("-c", dest="commands", metavar="COMMANDS", help="run these commands and exit")
    parser.add_argument("script", nargs="?", type=Path, help="run the commands in this file and exit")
    arguments = parser.parse_args(argv)
    script = None if arguments.commands is None else repair(arguments.commands)
    if arguments.script is not None:
        if script is not None:
            parser.error("-c and a script file exclude each other")
        try:
            script = arguments.script.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            name = str(arguments.script)
            hint = f"; a command goes after -c: llmsh -c {name}" if name in TABLE else ""
            print(f"llmsh: {name}: {reason}{hint}", file=sys.stderr)
            sys.exit(EXIT_USAGE)
    return Settings(arguments.socket or default_socket_path(), script, arguments.json)


async def run_shell(
    settings: Settings, terminal: Terminal, screen: Screen, on_start: Callable[[Shell], None]
) -> int:
    """Run a shell to its end; processes that are not detached end with it.

    Args:
        settings: what to run, and where the kernel is.
        terminal: where lines come from.
        screen: where output goes.
        on_start: called with the shell before its first command.
    """
    async with trio.open_nursery() as nursery:
        connection = Connection(settings.socket_path, nursery)
        shell = Shell(TABLE, run_pipeline, connection, terminal, screen, nursery, settings.wants_json)
        on_start(shell)
        if settings.script is None:
            status = await shell.run_terminal()
        else:
            status = await shell.run_text(settings.script)
        nursery.cancel_scope.cancel()
    return status


async def _run_in_pipe(settings: Settings) -> int:
    token = trio.lowlevel.current_trio_token()

    on_interrupt = _Relay()
    signal.signal(signal.SIGINT, on_interrupt)

    def on_start(shell: Shell) -> None:
        on_interrupt.connect(token, shell.interrupt)

    return await run_shell(settings, PipeTerminal(), Screen(), on_start)


def _run_at_prompt(settings: Settings) -> int:
    """Keep the main thread for the prompt and its signals, and run the shell in a second one."""
    from shell.llmsh.prompt import PromptTerminal, ShellCompleter  # here: scripts start without it

    started: queue.SimpleQueue[PromptTerminal | None] = queue.SimpleQueue()
    results: list[outcome.Outcome[int]] = []
    on_interrupt = _Relay()
    on_suspend = _Relay()

    async def run() -> int:
        token = trio.lowlevel.current_trio_token()
        shells: list[Shell] = []

        def look_up(kind: str) -> Sequence[Candidate]:
            return trio.from_thread.run(look_up_names, shells[0], kind, trio_token=token)

        terminal = PromptTerminal(token, ShellCompleter(TABLE, look_up), prepare_history())

        def on_start(shell: Shell) -> None:
            shells.append(shell)
            on_interrupt.connect(token, shell.interrupt)
            on_suspend.connect(token, shell.suspend)
            started.put(terminal)

        try:
            return await run_shell(settings, terminal, Screen(), on_start)
        finally:
            terminal.close()

    def run_thread() -> None:
        results.append(outcome.capture(trio.run, run))
        started.put(None)  # in case it never came that far

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGQUIT, on_interrupt)  # Ctrl-\ ends what is in the foreground; the jobs stay
    signal.signal(signal.SIGTSTP, on_suspend)
    thread = threading.Thread(target=run_thread, name="shell")
    thread.start()
    terminal = started.get()
    if terminal is not None:
        terminal.serve()
    thread.join()
    return results[0].unwrap()


class _Relay:
    """A signal handler that calls into the Trio thread, once there is one and while there is."""

    def __init__(self) -> None:
        self._post: Callable[[], None] = lambda: None

    def connect(self, token: trio.lowlevel.TrioToken, function: Callable[[], None]) -> None:
        """Call this function from now on."""
        self._post = partial(token.run_sync_soon, function)

    def __call__(self, signal_number: int, frame: object) -> None:
        with suppress(trio.RunFinishedError):
            self._post()


def prepare_history() -> str:
    """Return the path of the history file, its folder made; "" when there can be none."""
    path = state_folder() / "llmsh_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return ""
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
