"""Where lines come from: a person at a prompt, or a pipe.

The prompt owns the main thread (prompt_toolkit runs an event loop of its own there), Trio a second one.
Trio's side posts a request and waits; the main thread answers it through Trio's token.
"""

from __future__ import annotations

import os
import queue
import sys
import termios
from collections.abc import Callable
from typing import Protocol

import attrs
import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import Completer
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.patch_stdout import patch_stdout

from shell.llmsh.parser import Incomplete, ParseError, parse

MAIN_PROMPT = "llmsh> "
CHAT_PROMPT = "chat> "
PIPE_BYTES = 64 << 10


class EndOfInput(Exception):
    """No line will follow: Ctrl-D, or the end of the file."""


class LineAborted(Exception):
    """Ctrl-C at the prompt: the line is dropped."""


class Terminal(Protocol):
    """A source of lines."""

    is_interactive: bool

    async def read_line(self, prompt: str) -> str:
        """Wait for a line, without its newline. Raises EndOfInput, LineAborted. A checkpoint."""
        ...

    def past_lines(self) -> list[str]:
        """Return the lines typed before, in this session and earlier ones; the newest last."""
        ...


@attrs.define(eq=False)
class _Request:
    prompt: str
    answered: trio.Event = attrs.field(factory=trio.Event)
    line: str = ""
    error: Exception | None = None


class PromptTerminal:
    """A prompt with history and completion. Made in the Trio thread; `serve` runs on the main thread."""

    is_interactive = True

    def __init__(self, token: trio.lowlevel.TrioToken, completer: Completer, history_path: str) -> None:
        self._token = token
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._sessions = {
            MAIN_PROMPT: _make_session(
                completer, FileHistory(history_path) if history_path else InMemoryHistory()
            ),
            CHAT_PROMPT: _make_session(None, InMemoryHistory()),
        }

    async def read_line(self, prompt: str) -> str:
        """See Terminal."""
        request = _Request(prompt)
        self._requests.put(request)
        await request.answered.wait()
        if request.error is not None:
            raise request.error
        return request.line

    def past_lines(self) -> list[str]:
        """See Terminal."""
        return list(self._sessions[MAIN_PROMPT].history.get_strings())

    def close(self) -> None:
        """Let `serve` return."""
        self._requests.put(None)

    def serve(self) -> None:
        """Answer requests for lines until `close`. Blocks; for the main thread only."""
        while (request := self._requests.get()) is not None:
            try:
                with patch_stdout(raw=True):
                    request.line = repair(self._sessions[request.prompt].prompt(request.prompt))
            except KeyboardInterrupt:
                request.error = LineAborted()
            except EOFError:
                request.error = EndOfInput()
            except Exception as error:
                request.error = error  # a fault of the prompt is the shell's to report
            try:
                self._token.run_sync_soon(request.answered.set)
            except trio.RunFinishedError:
                return  # the shell broke while the prompt waited


class PipeTerminal:
    """Lines of standard input, read as they come. No prompt is shown."""

    is_interactive = False

    def __init__(self, read: Callable[[], bytes] | None = None) -> None:
        self._read = read or (lambda: os.read(0, PIPE_BYTES))  # sys.stdin's lock would hinder our exit
        self._buffer = b""
        self._ended = False

    async def read_line(self, prompt: str) -> str:
        """See Terminal."""
        await trio.lowlevel.checkpoint()
        while b"\n" not in self._buffer and not self._ended:
            data = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
            self._buffer += data
            self._ended = not data
        if not self._buffer:
            raise EndOfInput
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace").removesuffix("\r")

    def past_lines(self) -> list[str]:
        """See Terminal."""
        return []


def repair(text: str) -> str:
    """Replace what the environment handed over as undecodable bytes, which no tokenizer takes."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def echoes_interrupt() -> bool:
    """True when the terminal itself shows ^C as it is typed."""
    try:
        local_modes = termios.tcgetattr(sys.stdin.fileno())[3]
    except (OSError, ValueError, termios.error):
        return False
    return bool(local_modes & termios.ECHO and local_modes & termios.ECHOCTL)


def is_unfinished(text: str) -> bool:
    """True when Enter should continue the line instead of ending it: a quotation is open."""
    try:
        parse(text)
    except Incomplete:
        return True
    except ParseError:
        return False
    return False


def _make_session(completer: Completer | None, history: History) -> PromptSession[str]:
    keys = KeyBindings()

    @keys.add("c-z")
    def _(event: object) -> None:
        """Nothing runs in the foreground: there is nothing to suspend."""

    is_shell = completer is not None
    return PromptSession(
        completer=completer,
        complete_while_typing=False,
        complete_in_thread=True,  # it asks the kernel
        history=history,
        enable_history_search=True,
        key_bindings=keys,
        multiline=Condition(lambda: is_shell and is_unfinished(get_app().current_buffer.text)),
    )
