"""Where a command's input comes from and where its output may go: a pipe to another, or a file."""

from __future__ import annotations

import codecs
import os
from collections import deque
from typing import Protocol

import attrs
import trio

from shell.llmsh.errors import CommandError

PIPE_CHARACTERS = 64 << 10  # a writer waits while so many are unread
FILE_BYTES = 64 << 10
MAX_INPUT_CHARACTERS = 16 << 20  # that a command keeps in memory


class Input(Protocol):
    """Text from somewhere."""

    async def receive(self) -> str:
        """Wait for more; "" at the end. A checkpoint."""
        ...


@attrs.define(eq=False)
class TextPipe:
    """Text from one command to the next, or to whoever shows it.

    Writing is synchronous, so that it can stand for a file; a command that writes without end calls `drain`
    between its writes. Nobody reads a process's tokens while `drain` waits: they stay where they are, in the
    kernel, and so a slow reader holds nothing up but the writer.
    """

    limit: int = PIPE_CHARACTERS
    _chunks: deque[str] = attrs.field(factory=deque)
    _num_unread: int = 0
    _is_ended: bool = False  # by the writer
    _is_left: bool = False  # by the reader
    _readers: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _writers: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    @property
    def num_unread(self) -> int:
        """Characters that were written and not received."""
        return self._num_unread

    # --- the writer's end --------------------------------------------------------------------------------

    def write(self, text: str) -> int:
        """Add text. Raises BrokenPipeError: nobody will read it."""
        if self._is_left:
            raise BrokenPipeError
        if text:
            self._chunks.append(text)
            self._num_unread += len(text)
            self._readers.unpark_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: what is written is there."""

    def isatty(self) -> bool:
        """It is no terminal."""
        return False

    async def drain(self) -> None:
        """Wait until there is room. Raises BrokenPipeError: nobody will read it. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._num_unread >= self.limit and not self._is_left:
            await self._writers.park()
        if self._is_left:
            raise BrokenPipeError

    def end(self) -> None:
        """Say that nothing follows."""
        self._is_ended = True
        self._readers.unpark_all()

    # --- the reader's end --------------------------------------------------------------------------------

    async def receive(self) -> str:
        """See Input: all that is there."""
        await trio.lowlevel.checkpoint()
        while not self._chunks and not self._is_ended:
            await self._readers.park()
        text = "".join(self._chunks)
        self._chunks.clear()
        self._num_unread = 0
        self._writers.unpark_all()
        return text

    def leave(self) -> None:
        """Say that nobody will read any more."""
        self._is_left = True
        self._chunks.clear()
        self._num_unread = 0
        self._writers.unpark_all()


class FileInput:
    """A file's text, piece by piece. What is no UTF-8 is replaced."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    async def receive(self) -> str:
        """See Input. It may be a terminal or another program's pipe, so a thread waits."""
        while True:
            data = await trio.to_thread.run_sync(
                os.read, self._descriptor, FILE_BYTES, abandon_on_cancel=True
            )
            text = self._decoder.decode(data, final=not data)
            if text or not data:
                return text


async def read_all(source: Input) -> str:
    """Read an input to its end. Raises CommandError when it is longer than MAX_INPUT_CHARACTERS."""
    chunks = []
    length = 0
    while text := await source.receive():
        length += len(text)
        if length > MAX_INPUT_CHARACTERS:
            raise CommandError(f"the input has more than {MAX_INPUT_CHARACTERS} characters, the limit")
        chunks.append(text)
    return "".join(chunks)


@attrs.define(eq=False)
class LineReader:
    """An input line by line, each with its newline, but for a last one that has none."""

    source: Input
    _rest: str = ""
    _is_over: bool = False

    async def read_line(self) -> str:
        """Wait for a line; "" at the end. Raises CommandError for one that is over MAX_INPUT_CHARACTERS."""
        while "\n" not in self._rest and not self._is_over:
            text = await self.source.receive()
            self._is_over = not text
            self._rest += text
            if len(self._rest) > MAX_INPUT_CHARACTERS and "\n" not in self._rest:
                raise CommandError(f"a line has more than {MAX_INPUT_CHARACTERS} characters, the limit")
        line, newline, self._rest = self._rest.partition("\n")
        return line + newline
