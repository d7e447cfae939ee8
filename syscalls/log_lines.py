"""A server's log on standard error: lines that are fit for a terminal, and that nobody waits for."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import MutableMapping
from typing import Any

PIECE_BYTES = select.PIPE_BUF  # a pipe that has room at all has room for so many


def escape_texts(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: write what cannot be printed in an event's texts as Python does.

    A path or a label that a client chose must not drive the terminal that shows it. Modifies `event`. Values
    of other types are printed by `repr`, which does the same.
    """
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = "".join(char if char.isprintable() else repr(char)[1:-1] for char in value)
    return event


class LogStream:
    """A file to print to, one line at a time, each flushed; lines that are not taken are lost.

    A disk that is full, a reader that left or does not read, and a terminal that is stopped (Ctrl-S) neither
    end a server nor hold up its event loop. How many lines were lost is told when others are taken again.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None and sys.stderr is not None:  # None: the process was started without
            descriptor = 2
        self._descriptor = descriptor
        self._text = ""
        self._num_lost = 0

    def write(self, text: str) -> int:
        """Keep text until it is flushed."""
        self._text += text
        return len(text)

    def flush(self) -> None:
        """Write what was kept, as far as it is taken at once. Never raises for what the other end does."""
        text, self._text = self._text, ""
        if not text:
            return
        lost = f"\n{self._num_lost} lines of the log were lost\n" if self._num_lost else ""
        if self._put((lost + text).encode(errors="backslashreplace")):
            self._num_lost = 0
        else:
            self._num_lost += 1

    def _put(self, data: bytes) -> bool:
        """Write bytes; False: not all were taken."""
        if self._descriptor is None:
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        try:
            while data:
                if not poll.poll(0):
                    return False
                data = data[os.write(self._descriptor, data[:PIECE_BYTES]) :]
        except OSError:
            return False
        return True
