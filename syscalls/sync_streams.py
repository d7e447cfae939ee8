"""What a blocking client reads in pieces, as iterators: the output of a process, and the kernel's events."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from syscalls.process import Output
from syscalls.system import Event


class SyncOutputStream:
    """A process's output, one `Output` for each read; ends after the one whose `end` is set.

    `offset` is where the next read starts, so the next turn of an interactive process is
    `client.stream(pid, stream.offset)`.
    """

    def __init__(self, read: Callable[[int, int], Output], pid: int, offset: int) -> None:
        self.offset = offset
        self._read = read  # by pid and offset
        self._pid = pid
        self._ended = False

    def __iter__(self) -> Iterator[Output]:
        return self

    def __next__(self) -> Output:
        if self._ended:
            raise StopIteration
        output = self._read(self._pid, self.offset)
        self.offset = output.offset + len(output.tokens)
        self._ended = output.end is not None
        return output


class SyncEventStream:
    """The kernel's events in batches, oldest first; waits for new ones, and never ends by itself."""

    def __init__(self, wait_events: Callable[[int], tuple[Event, ...]], since: int) -> None:
        self.since = since
        self._wait_events = wait_events  # from a sequence number on

    def __iter__(self) -> Iterator[tuple[Event, ...]]:
        return self

    def __next__(self) -> tuple[Event, ...]:
        events = self._wait_events(self.since)
        if events:
            self.since = events[-1].sequence + 1
        return events
