"""Which tokens the text of a message was made of, beside those of thoughts, calls and marks.

A choice tells a token's log-probabilities as soon as no stop string can swallow it; what it turns out to be
is known later: `{"na` may begin a call, or be text.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from shell.gateway.choice import TokenEntry


@attrs.define(eq=False)
class TextEntries:
    """Entries wait here for the text that they belong to. Places are characters of the decoded text."""

    _waiting: list[TokenEntry] = attrs.field(factory=list)
    _told_to: int | None = None  # where the text that was told ends; None: behind a call, it is not known yet
    _num_shown: int = 0
    _has_begun: bool = False

    def push(self, entries: Sequence[TokenEntry], answer_start: int | None, num_shown: int) -> None:
        """Take what a token added, before the parts that it added are written.

        Args:
            entries: of the choice.
            answer_start: where its answer begins; None: what came so far is thought.
            num_shown: where the text ends that the choice has let out.
        """
        if answer_start is None:
            return
        if not self._has_begun:
            self._has_begun, self._told_to = True, answer_start
        self._waiting += [entry for entry in entries if entry.start >= answer_start]
        self._num_shown = num_shown

    def take(self, num_characters: int) -> list[TokenEntry]:
        """Return the entries of the next characters of text."""
        if self._told_to is None:  # the marks of a call are before it
            self._told_to = start = self._num_shown - num_characters
            self._waiting = [entry for entry in self._waiting if entry.start >= start]
        self._told_to += num_characters
        count = sum(entry.start < self._told_to for entry in self._waiting)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def skip_call(self) -> None:
        """What waits was a call."""
        self._waiting.clear()
        self._told_to = None
