"""Telling a watcher what happens to a process, piece by piece, while there is one."""

from __future__ import annotations

from typing import Protocol

import attrs

from llmos.proc.entry import Entry, Kind

RUN_TOKENS = 32  # of a decode run that a watcher is told of at once


class Watcher(Protocol):
    """Is told of everything as it happens, unlike the entries piece by piece. Called between two changes."""

    def look(self, now: float) -> None:
        """The process went a step further: its memory may have changed."""

    def record(self, entry: Entry, /) -> None:
        """Something happened to it. The entry may change afterwards."""


@attrs.define(eq=False)
class Telling:
    """What one process's watcher has been told, and has not been told yet. It may leave at any call."""

    watcher: Watcher | None = attrs.field(init=False, default=None)
    _num_untold: int = attrs.field(init=False, default=0)  # tokens of the decode run
    _untold_since: float = attrs.field(init=False, default=0.0)

    def begin(self, watcher: Watcher) -> None:
        """Tell a watcher of everything from now on."""
        self.watcher, self._num_untold = watcher, 0

    def end(self) -> None:
        """Tell nobody any more."""
        self.watcher = None

    def tell(self, entry: Entry) -> None:
        """Tell of something, after the tokens before it."""
        self._tell_run(entry.until)
        if self.watcher is not None:
            self.watcher.look(entry.until)
        if self.watcher is not None:
            self.watcher.record(entry)

    def tell_token(self, now: float) -> None:
        """A token was decoded: it is told of with those around it."""
        if self.watcher is None:
            return
        self.watcher.look(now)
        if not self._num_untold:
            self._untold_since = now
        self._num_untold += 1
        if self._num_untold == RUN_TOKENS:
            self._tell_run(now)

    def _tell_run(self, now: float) -> None:
        """Tell of the tokens that were decoded since the last time."""
        if self.watcher is not None and self._num_untold:
            num_tokens, self._num_untold = self._num_untold, 0
            self.watcher.record(Entry(Kind.DECODING, self._untold_since, now, num_tokens=num_tokens))
