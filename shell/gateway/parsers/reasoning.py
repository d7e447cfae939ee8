"""What a model thinks before it answers, told apart from the answer."""

from __future__ import annotations

import enum

from shell.gateway.parsers.events import Content, Event, Reasoning

LINE_ENDS = "\r\n"


class _Place(enum.Enum):
    OPENING = "opening"  # it is not known yet whether the text begins with a thought
    INSIDE = "inside"
    ANSWER = "answer"


class ReasoningParser:
    """Splits a text that may begin with one thought between two marks. A state machine without I/O.

    The marks and the line ends that touch them are nobody's text. A mark later in the answer is content.

    Args:
        opens: such as `<think>`.
        closes: such as `</think>`.
        is_inside: the prompt has opened the thought already.
    """

    def __init__(self, opens: str, closes: str, *, is_inside: bool = False) -> None:
        self.has_reasoned = is_inside  # the text has a thought
        self._opens = opens
        self._closes = closes
        self._place = _Place.INSIDE if is_inside else _Place.OPENING
        self._is_at_start = is_inside  # of the thought or of the answer behind it: line ends are dropped
        self._held = ""

    @property
    def is_open(self) -> bool:
        """True while what comes next may belong to the thought."""
        return self._place is not _Place.ANSWER

    @property
    def num_held(self) -> int:
        """Characters at the end of the text of which it is not known yet what they are."""
        return len(self._held)

    def feed(self, text: str) -> list[Event]:
        """Take more text. Returns what it decides."""
        self._held += text
        events: list[Event] = []
        if self._place is _Place.OPENING and not self._open():
            return events
        if self._place is _Place.INSIDE:
            self._skip_line_ends()
            where = self._held.find(self._closes)
            if where < 0:
                count = max(n for n in range(len(self._closes)) if self._held.endswith(self._closes[:n]))
                where = len(self._held) - count
                self._take(events, Reasoning, len(self._held[:where].rstrip(LINE_ENDS)))
                return events
            self._take(events, Reasoning, len(self._held[:where].rstrip(LINE_ENDS)))
            self._held = self._held[self._held.index(self._closes) + len(self._closes) :]
            self._place, self._is_at_start = _Place.ANSWER, True
        self._skip_line_ends()
        self._take(events, Content, len(self._held))
        return events

    def finish(self) -> list[Event]:
        """End the text. Returns what was held back."""
        events: list[Event] = []
        self._take(events, Reasoning if self._place is _Place.INSIDE else Content, len(self._held))
        self._place = _Place.ANSWER
        return events

    def _open(self) -> bool:
        """Decide whether there is a thought. Returns False when that needs more text."""
        begun = self._held.lstrip()
        if len(begun) < len(self._opens) and self._opens.startswith(begun):
            return False
        if begun.startswith(self._opens):
            self._held = begun[len(self._opens) :]
            self._place, self._is_at_start, self.has_reasoned = _Place.INSIDE, True, True
        else:
            self._place = _Place.ANSWER
        return True

    def _skip_line_ends(self) -> None:
        if self._is_at_start:
            self._held = self._held.lstrip(LINE_ENDS)
            self._is_at_start = not self._held

    def _take(self, events: list[Event], kind: type[Content | Reasoning], count: int) -> None:
        if count:
            events.append(kind(self._held[:count]))
            self._held = self._held[count:]
