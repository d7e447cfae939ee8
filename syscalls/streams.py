"""What a client reads in pieces, as async iterators: the output of a process, and the kernel's events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from syscalls.process import Output
from syscalls.system import Event


class OutputStream:
    """A process's output, one `Output` for each read; ends after the one whose `end` is set.

    Leaving the loop early costs nothing: reads do not consume. `offset` is where the next read starts, so
    the next turn of an interactive process is `client.stream(pid, stream.offset)`.
    """

    def __init__(self, read: Callable[[int, int], Awaitable[Output]], pid: int, offset: int) -> None:
        self.offset = offset
        self._read = read  # by pid and offset
        self._pid = pid
        self._ended = False

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> Output:
        if self._ended:
            raise StopAsyncIteration
        output = await self._read(self._pid, self.offset)
        self.offset = output.offset + len(output.tokens)
        self._ended = output.end is not None
        return output


class EventStream:
    """The kernel's events in batches, oldest first; waits for new ones, and never ends by itself."""

    def __init__(self, wait_events: Callable[[int], Awaitable[tuple[Event, ...]]], since: int) -> None:
        self.since = since
        self._wait_events = wait_events  # from a sequence number on

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        events = await self._wait_events(self.since)
        if events:
            self.since = events[-1].sequence + 1
        return events
