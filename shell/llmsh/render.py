"""What the shell writes: text as it comes, tables, JSON. Plain when the output is not a terminal."""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol, TextIO, cast

import attrs
import msgspec
from rich.console import Console, RenderableType
from rich.text import Text

from shell.llmsh.pipe import TextPipe
from shell.llmsh.text import make_safe

STALE = ("COLUMNS", "LINES")
MAX_ERROR_CHARACTERS = 2000  # an error quotes what was typed, and that may be a paste of megabytes
PIPE_WIDTH = 4096  # columns for tables in a pipe: nothing is cut there


def format_bytes(size: int) -> str:
    """Write a size in binary units: 512 B, 2.0 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_seconds(seconds: float | None) -> str:
    """Write a duration: 80 ms, 3.2 s, 4:05, 2:03:00."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Writable(Protocol):
    """What takes text: a stream, a file, a pipe to another command."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


class _Console(Console):
    """Draws tables. What to do when a reader has left is for the shell to say; rich ends the program."""

    def on_broken_pipe(self) -> None:
        """Let the error that rich handles go on."""
        raise BrokenPipeError


@attrs.define(eq=False)
class Screen:
    """Standard output and error. The streams are looked up at each use: a waiting prompt replaces them."""

    _out: Writable | None = None
    _err: TextIO | None = None
    _line_is_open: bool = False  # something was written after the last newline

    @property
    def out(self) -> Writable:
        """Where output goes."""
        return self._out or sys.stdout

    @property
    def is_terminal(self) -> bool:
        """True when somebody looks at it: colours and redrawing make sense."""
        return self.out.isatty()

    @property
    def can_redraw(self) -> bool:
        """True on a terminal whose cursor can be moved."""
        return self.is_terminal and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")

    @property
    def columns(self) -> int:
        """How wide text may be."""
        return self.console().width

    def onto(self, out: Writable) -> Screen:
        """Return a screen that writes elsewhere; errors go where they went."""
        return Screen(out, self._err)

    async def drain(self) -> None:
        """Wait until what was written has room, when another command reads it. Raises BrokenPipeError."""
        if isinstance(self._out, TextPipe):
            await self._out.drain()

    def console(self) -> Console:
        """Return a console that draws here."""
        out = cast("TextIO", self.out)  # rich wants a file and uses no more of it than `Writable` has
        if self.is_terminal:
            # A size in the environment is that of the terminal as it was when somebody exported it.
            environment = {name: value for name, value in os.environ.items() if name not in STALE}
            return _Console(file=out, highlight=False, _environ=environment)
        return _Console(file=out, width=PIPE_WIDTH, no_color=True, force_terminal=False, highlight=False)

    def write(self, text: str) -> None:
        """Write a model's text as it comes."""
        if not text:
            return
        self.out.write(make_safe(text) if self.is_terminal else text)
        self.out.flush()
        self._line_is_open = not text.endswith("\n")

    def write_raw(self, codes: str) -> None:
        """Write control codes of our own, which leave the cursor at the start of a line."""
        self.out.write(codes)
        self.out.flush()
        self._line_is_open = False

    def end_line(self) -> None:
        """Start a new line unless one has just begun."""
        if self._line_is_open:
            self.write("\n")

    def line(self, text: str = "") -> None:
        """Write one line of our own."""
        self.end_line()
        self.write(f"{text}\n")

    def note(self, text: str) -> None:
        """Write a remark: dim on a terminal, nothing in a pipe."""
        if self.is_terminal:
            self.end_line()
            self.console().print(Text(make_safe(text), style="dim"))

    def error(self, text: str) -> None:
        """Write one line to standard error; of a very long one the beginning and the end."""
        self.end_line()
        stream = self._err or sys.stderr
        if len(text) > MAX_ERROR_CHARACTERS:
            half = MAX_ERROR_CHARACTERS // 2
            text = f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
        stream.write(make_safe(text) + "\n")
        stream.flush()

    def show(self, *parts: RenderableType) -> None:
        """Draw tables and texts."""
        self.end_line()
        console = self.console()
        if self.is_terminal:
            console.print(*parts, sep="\n")
            return
        with console.capture() as capture:
            console.print(*parts, sep="\n")
        self.out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
        self.out.flush()

    def json(self, value: Any, *, one_line: bool = False) -> None:
        """Write a value as JSON, with its fields by name."""
        self.end_line()
        data = msgspec.json.encode(to_plain(value))
        self.write((data if one_line else msgspec.json.format(data, indent=2)).decode() + "\n")


def to_plain(value: Any) -> Any:
    """Turn structs into dicts by field name, also those that travel as arrays."""
    if isinstance(value, msgspec.Struct):
        return {name: to_plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
