"""llmsh: the shell of llmos. Arguments, threads and signals; everything else is in `loop`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import outcome
import trio

from shell.llmsh.commands import TABLE
from shell.llmsh.completion import Candidate, ShellCompleter, look_up_names
from shell.llmsh.connection import Connection
from shell.llmsh.errors import EXIT_BROKEN_PIPE, EXIT_USAGE
from shell.llmsh.loop import Shell
from shell.llmsh.render import Screen
from shell.llmsh.terminal import PipeTerminal, PromptTerminal, Terminal
from syscalls.paths import default_socket_path


@attrs.frozen
class Settings:
    """What the command line asked for."""

    socket_path: Path
    script: str | None  # None: lines from the terminal
    wants_json: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the shell. Returns its exit code."""
    settings = read_settings(sys.argv[1:] if argv is None else argv)
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            return _run_at_prompt(settings)
        return trio.run(_run_in_pipe, settings)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing to flush at exit
        return EXIT_BROKEN_PIPE


def read_settings(argv: Sequence[str]) -> Settings:
    """Read the arguments. Exits with 2 when they are wrong."""
    parser = argparse.ArgumentParser(prog="llmsh", description="The shell of llmos.")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="the kernel's socket")
    parser.add_argument("--json", action="store_true", help="print listings as JSON")
    parser.add_argument("-c", dest="commands", metavar="COMMANDS", help="run these commands and exit")
    parser.add_argument("script", nargs="?", type=Path, help="run the commands in this file and exit")
    arguments = parser.parse_args(argv)
    script = arguments.commands
    if arguments.script is not None:
        if script is not None:
            parser.error("-c and a script file exclude each other")
        try:
            script = arguments.script.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            print(f"llmsh: {arguments.script}: {error}", file=sys.stderr)
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
        shell = Shell(TABLE, connection, terminal, screen, nursery, settings.wants_json)
        on_start(shell)
        if settings.script is None:
            status = await shell.run_terminal()
        else:
            status = await shell.run_text(settings.script)
        nursery.cancel_scope.cancel()
    return status


async def _run_in_pipe(settings: Settings) -> int:
    token = trio.lowlevel.current_trio_token()

    def on_start(shell: Shell) -> None:
        signal.signal(signal.SIGINT, lambda *_: token.run_sync_soon(shell.interrupt))

    return await run_shell(settings, PipeTerminal(), Screen(), on_start)


def _run_at_prompt(settings: Settings) -> int:
    """Keep the main thread for the prompt and its signals, and run the shell in a second one."""
    started = threading.Event()
    result: list[outcome.Outcome[int]] = []
    terminals: list[PromptTerminal] = []

    async def run() -> int:
        token = trio.lowlevel.current_trio_token()

        def look_up(kind: str) -> Sequence[Candidate]:
            return trio.from_thread.run(look_up_names, shells[0], kind, trio_token=token)

        shells: list[Shell] = []
        terminal = PromptTerminal(token, ShellCompleter(TABLE, look_up), prepare_history())
        terminals.append(terminal)

        def on_start(shell: Shell) -> None:
            shells.append(shell)
            handlers["interrupt"] = partial(token.run_sync_soon, shell.interrupt)
            handlers["suspend"] = partial(token.run_sync_soon, shell.suspend)
            started.set()

        return await run_shell(settings, terminal, Screen(), on_start)

    handlers: dict[str, Callable[[], None]] = {}

    def run_thread() -> None:
        result.append(outcome.capture(trio.run, run))
        started.set()
        for terminal in terminals:
            terminal.close()

    thread = threading.Thread(target=run_thread, name="shell")
    thread.start()
    started.wait()
    if handlers:
        signal.signal(signal.SIGINT, lambda *_: handlers["interrupt"]())
        signal.signal(signal.SIGTSTP, lambda *_: handlers["suspend"]())
    for terminal in terminals:
        terminal.serve()
    thread.join()
    return result[0].unwrap()


def prepare_history() -> str:
    """Return the path of the history file, its folder made; "" when there can be none."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "llmos" / "llmsh_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return ""
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
