"""Which tokens the text of a message was made of, beside those of thoughts, calls and marks.

A choice tells a token's log-probabilities as soon as no stop string can swallow it; what it turns out to be
is known later: `{"na` may begin a call, or be text.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from shell.gateway.choice import TokenEntry
from shell.gateway.reader import MessageReader


@attrs.define(eq=False)
class TextEntries:
    """Entries wait here for the text that they belong to. Places are characters of the decoded text."""

    _waiting: list[TokenEntry] = attrs.field(factory=list)
    _starts: list[int] = attrs.field(factory=list)  # of runs of text, of which a call ends one
    _run: int = -1
    _told_to: int | None = None  # where the text of this run ends that was told; None: it has not begun

    def push(self, entries: Sequence[TokenEntry], reader: MessageReader) -> None:
        """Take what a token added, before the parts that it added are written."""
        if reader.answer_start is not None:  # what came before is thought
            self._waiting += entries
        while (start := reader.text_start(len(self._starts))) is not None:
            self._starts.append(start)

    def take(self, num_characters: int) -> list[TokenEntry]:
        """Return the entries of the next characters of text."""
        if self._told_to is None:
            self._run += 1
            start = self._told_to = self._starts[self._run]
            self._waiting = [entry for entry in self._waiting if entry.start >= start]
        self._told_to += num_characters
        count = sum(entry.start < self._told_to for entry in self._waiting)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def skip_call(self) -> None:
        """What comes next is not of the text that was told."""
        self._told_to = None
