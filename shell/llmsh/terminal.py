"""Where lines come from: a person at a prompt (see `prompt`), or a pipe."""

from __future__ import annotations

import os
import sys
import termios
from typing import Protocol

import trio

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


class PipeTerminal:
    """Lines of standard input, read as they come. No prompt is shown."""

    is_interactive = False

    def __init__(self) -> None:
        self._buffer = b""
        self._ended = False

    async def read_line(self, prompt: str) -> str:
        """See Terminal."""
        await trio.lowlevel.checkpoint()
        while b"\n" not in self._buffer and not self._ended:
            # not by sys.stdin, whose lock would hinder our exit
            data = await trio.to_thread.run_sync(os.read, 0, PIPE_BYTES, abandon_on_cancel=True)
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
