"""What all formats of tool calls share: a text that is read as it comes, and the JSON object of a call.

A parser is a state machine without I/O. It is written as a generator that pauses where it needs more text
before it can decide. Every decision depends on text that is there, never on where a fragment ended, so any
cut of a text gives the same events. Blanks that touch a call are dropped; so is its markup. What turns out to
be no call is content, word for word.

A call of a model that is free to write anything is told only when it is complete and parses: what was told to
a client cannot be taken back. When the sampler is bound to a grammar the call is certain, and its arguments
are told as they come.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import ClassVar

import msgspec

from shell.gateway.parsers.events import CallArguments, CallBegun, CallEnded, Content, Event
from shell.gateway.parsers.json_span import JsonSpan
from shell.gateway.parsers.style import CallStyle

BLANKS = " \t\r\n"

# The head of a call as our own grammars write it.
_HEAD = re.compile(
    r'[ \t\r\n]*\{[ \t\r\n]*"name"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*,'
    r'[ \t\r\n]*"(?:arguments|parameters)"[ \t\r\n]*:[ \t\r\n]*(?=\{)'
)


class _CallObject(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()  # the spelling is kept: 1.0 stays 1.0
    parameters: msgspec.Raw = msgspec.Raw()


def read_arguments(text: str) -> str | None:
    """Return arguments as the text of a JSON object, or None when they are none.

    "" and `null` stand for no arguments; a string may hold the object's text, as some models write it.
    """
    if text in ("", "null"):
        return "{}"
    try:
        found = msgspec.json.decode(text)
        if isinstance(found, str):
            text, found = found, msgspec.json.decode(found)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return text if isinstance(found, dict) else None


def read_call(text: str) -> tuple[str, str] | None:
    """Return name and arguments of a call's JSON object, or None when it is none."""
    try:
        call = msgspec.json.decode(text, type=_CallObject)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    arguments = read_arguments(bytes(call.arguments or call.parameters).decode())
    return None if arguments is None or not call.name else (call.name, arguments)


class ToolParser(ABC):
    """Reads a text for calls in one format. A subclass writes `_read`.

    Args:
        names: the functions that there are. A call without markup counts only when it names one of them.
        is_certain: the text follows the grammar of forced calls.
    """

    MARKUP: ClassVar[tuple[str, ...]] = ()  # special tokens that must be in the text for us to see
    STYLE: ClassVar[CallStyle] = CallStyle()  # how we would write calls

    def __init__(self, names: frozenset[str], *, is_certain: bool = False) -> None:
        self.num_ended = 0  # calls that are complete
        self.text_starts: list[int] = []  # where runs of content begin, one after the other, in characters
        self._names = names
        self._is_certain = is_certain
        self._held = ""  # read and not told
        self._num_gone = 0  # characters that are not held any more
        self._is_telling = False  # the last event was content
        self._is_over = False
        self._events: list[Event] = []
        self._machine = self._read()

    def feed(self, text: str) -> list[Event]:
        """Take more text. Returns what it decides."""
        self._held += text
        return self._advance()

    def finish(self) -> list[Event]:
        """End the text. Returns what was held back."""
        self._is_over = True
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._machine, None)
        events, self._events = self._events, []
        return events

    @abstractmethod
    def _read(self) -> Generator[None, None, None]:
        """Read the whole text, pausing where more is needed."""

    def _drop(self, count: int) -> None:
        self._held = self._held[count:]
        self._num_gone += count

    def _tell(self, count: int) -> None:
        if count:
            if not self._is_telling:
                self.text_starts.append(self._num_gone)
                self._is_telling = True
            self._events.append(Content(self._held[:count]))
            self._drop(count)

    def _tell_rest(self) -> Generator[None, None, None]:
        """All that comes is content."""
        while True:
            self._tell(len(self._held))
            if self._is_over:
                return
            yield

    def _tell_until(self, mark: str) -> Generator[None, None, bool]:
        """Tell content up to a mark and the blanks before it, which stay. False: the text is over."""
        while True:
            where = self._held.find(mark)
            if where >= 0:
                self._tell(len(self._held[:where].rstrip(BLANKS)))
                return True
            if self._is_over:
                self._tell(len(self._held))
                return False
            num_begun = max(n for n in range(len(mark)) if self._held.endswith(mark[:n]))
            self._tell(len(self._held[: len(self._held) - num_begun].rstrip(BLANKS)))
            yield

    def _skip_blanks(self, at: int) -> Generator[None, None, int]:
        """Return where the first character from `at` on stands that is no blank; at the end: the end."""
        while True:
            while at < len(self._held) and self._held[at] in BLANKS:
                at += 1
            if at < len(self._held) or self._is_over:
                return at
            yield

    def _has(self, mark: str, at: int) -> Generator[None, None, bool]:
        """Return whether the text goes on with `mark` at a position."""
        while not self._is_over and len(self._held) < at + len(mark) and mark.startswith(self._held[at:]):
            yield
        return self._held.startswith(mark, at)

    def _drop_blanks(self) -> Generator[None, None, None]:
        self._drop((yield from self._skip_blanks(0)))

    def _read_object(self, at: int) -> Generator[None, None, int | None]:
        """Return the end of the JSON object at a position; None: there is none, and its text was told."""
        span = JsonSpan()
        end = at
        while True:
            end += span.feed(self._held[end:])
            if span.is_complete:
                return end
            if span.is_broken or self._is_over:
                self._tell(end)
                return None
            yield

    def _read_call(self, at: int, *, is_marked: bool = True) -> Generator[None, None, bool]:
        """Read the call whose object begins at a position, blanks aside; what stands before it is markup.

        Returns:
            False when it is no call: then it was told, with what stands before it.
        """
        at = yield from self._skip_blanks(at)
        if self._is_certain:
            return (yield from self._stream_call(at))
        end = yield from self._read_object(at)
        if end is None:
            return False
        call = read_call(self._held[at:end])
        if call is None or not (is_marked or call[0] in self._names):
            self._tell(end)
            return False
        self._drop(end)
        self._tell_call(*call)
        return True

    def _tell_call(self, name: str, arguments: str) -> None:
        self._events += [CallBegun(name), CallArguments(arguments), CallEnded()]
        self._is_telling = False
        self.num_ended += 1

    def _stream_call(self, at: int) -> Generator[None, None, bool]:
        while (head := _HEAD.match(self._held, at)) is None:
            if self._is_over:  # cut before its name was known: there is nothing to tell
                self._drop(len(self._held))
                return False
            yield
        self._drop(head.end())
        if not (yield from self._stream_arguments(msgspec.json.decode(head[1], type=str))):
            return False
        at = yield from self._skip_blanks(0)
        self._drop(at + 1 if self._held.startswith("}", at) else 0)
        return True

    def _stream_arguments(self, name: str) -> Generator[None, None, bool]:
        """Tell the arguments, which are next in the text, as they come. Returns False when they were cut."""
        self._events.append(CallBegun(name))
        self._is_telling = False
        span = JsonSpan()
        while True:
            count = span.feed(self._held)
            if count:
                self._events.append(CallArguments(self._held[:count]))
            self._drop(count)
            if span.is_complete:
                self._events.append(CallEnded())
                self.num_ended += 1
                return True
            if span.is_broken or self._is_over:
                self._drop(len(self._held))
                return False
            yield

    def _read_list(self, at: int, *, is_marked: bool = True) -> Generator[None, None, bool]:
        """Read calls from behind a `[` to the `]`. Returns False when one of them is none."""
        while True:
            if not (yield from self._read_call(at, is_marked=is_marked)):
                return False
            at = yield from self._skip_blanks(0)
            if self._held.startswith("]", at):
                self._drop(at + 1)
                return True
            if not self._held.startswith(",", at):
                self._drop(at)
                return False
            self._drop(at + 1)
            at = 0
