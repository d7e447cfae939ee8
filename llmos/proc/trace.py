"""What somebody who follows one process is shown: a ring of events that exists only while they ask for it.

A process that nobody follows has none, and then nothing is written and nothing is looked at but whether there
is one. Whoever reads too slowly loses the oldest events, and is told how many; the process never waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from llmos.proc.entry import Entry, Kind
from syscalls.process import TraceEvent

MAX_TRACE_EVENTS = 1024
PATIENCE_SECONDS = 10.0  # without a question, after which nobody is thought to follow any more


@attrs.define(eq=False, kw_only=True)
class Trace:
    """The events of one process, and those who wait for the next.

    Args:
        began: when the process was spawned; times of events are since then.
        asked_at: when somebody last asked for events.
        count_pages: says how many pages are mapped, and how many tokens one holds.
        on_forgotten: called once nobody asks any more.
        next_sequence: the number of the next event.
    """

    began: float
    asked_at: float
    count_pages: Callable[[], tuple[int, int]]
    on_forgotten: Callable[[], None]
    next_sequence: int = 1
    has_ended: bool = attrs.field(init=False, default=False)  # the process's end is among the events
    _num_pages: int = attrs.field(init=False, default=0)  # mapped, as far as it was told
    _ring: deque[TraceEvent] = attrs.field(init=False, factory=lambda: deque(maxlen=MAX_TRACE_EVENTS))
    _followers: list[Callable[[], None]] = attrs.field(init=False, factory=list)

    def record(self, entry: Entry, result: str = "", session: int | None = None) -> None:
        """Add an event, and wake whoever waits for it.

        Args:
            entry: times are on the kernel's clock.
            result: of a call.
            session: that made the call.
        """
        until = entry.until
        if not self._followers and until - self.asked_at > PATIENCE_SECONDS:
            self.on_forgotten()
            return
        self._ring.append(
            TraceEvent(
                self.next_sequence, str(entry.kind), entry.at - self.began, until - entry.at, entry.count,
                entry.num_tokens, entry.num_bytes, entry.pid, entry.text, result, session,
            )
        )  # fmt: skip
        self.next_sequence += 1
        self.has_ended = self.has_ended or entry.kind == Kind.ENDED
        followers, self._followers = self._followers, []
        for wake in followers:
            wake()

    def look(self, now: float) -> None:
        """Add an event when pages were mapped or given back since the last time."""
        num_pages, tokens_per_page = self.count_pages()
        change, self._num_pages = num_pages - self._num_pages, num_pages
        if change:
            kind = "mapped" if change > 0 else "unmapped"
            self.record(Entry(kind, now, now, abs(change), num_pages * tokens_per_page))

    def since(self, sequence: int, limit: int) -> tuple[tuple[TraceEvent, ...], int]:
        """Return the oldest `limit` events from `sequence` on, and how many before them are lost."""
        found = [event for event in self._ring if event.sequence >= sequence][:limit]
        oldest = self.next_sequence - len(self._ring)
        return tuple(found), max(0, oldest - max(1, sequence))

    def follow(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, at the next event. It must not change the trace."""
        self._followers.append(wake)

    def unfollow(self, wake: Callable[[], None]) -> None:
        """Forget a follower that is gone. Does nothing when it was woken already."""
        if wake in self._followers:
            self._followers.remove(wake)
