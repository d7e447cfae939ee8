"""A session's unsent frames: gathered while a step is accounted for, and sent many at a time."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from llmos.ipc.framing import FrameStream
from llmos.params import MAX_REPLY_BACKLOG_BYTES

FRAMES_AT_ONCE = 32  # gathered, at most, before they are on their way: the reader works beside us


@attrs.define(eq=False)
class Outbox:
    """What waits to be sent to one client.

    Args:
        stream: to the client.
        unflushed: where `flush_nowait` is left for whoever flushes when a step's results are out.
        gather: asked for more frames, which it gives to `hold`, before each write and behind it.
    """

    stream: FrameStream
    unflushed: set[Callable[[], None]]
    gather: Callable[[], None]
    num_bytes: int = attrs.field(default=0, init=False)  # unsent, or under way
    _frames: list[bytes] = attrs.field(factory=list, init=False)
    _is_writing: bool = attrs.field(default=False, init=False)  # what was taken out of `_frames` is under way
    _is_closed: bool = attrs.field(default=False, init=False)
    _has_news: trio.Event = attrs.field(factory=trio.Event, init=False)
    _has_room: trio.Event = attrs.field(factory=trio.Event, init=False)

    def put(self, frame: bytes) -> None:
        """Send a frame, now or with others that come in the same turn."""
        self.hold(frame)
        if len(self._frames) >= FRAMES_AT_ONCE:
            self.flush_nowait()
        else:
            self.unflushed.add(self.flush_nowait)

    def hold(self, frame: bytes) -> None:
        """Keep a frame for the next write, which is under way or asked for."""
        self._frames.append(frame)
        self.num_bytes += len(frame)
        self._has_news.set()

    def note_due(self, num_due: int) -> None:
        """`gather` would give something, by now of so many; the first of them is told, too."""
        if num_due == 1:
            self._has_news.set()
            self.unflushed.add(self.flush_nowait)
        elif num_due % FRAMES_AT_ONCE == 0:
            self.flush_nowait()

    def flush_nowait(self) -> None:
        """Send what can go at once. `run` sends the rest."""
        self.unflushed.discard(self.flush_nowait)
        if self._is_writing:
            return
        self.gather()
        while self._frames:
            data = b"".join(self._frames)
            num_sent = self.stream.send_nowait(data)
            self._frames = [data[num_sent:]] if num_sent < len(data) else []
            self._give_room(num_sent)
            if self._frames:
                return
            self.gather()

    async def run(self) -> None:
        """Send what does not go at once, until it is closed and empty.

        Raises trio.BrokenResourceError, trio.ClosedResourceError: the client is gone.
        """
        while True:
            await self._has_news.wait()
            self._has_news = trio.Event()
            self.gather()
            data = b"".join(self._frames)
            self._frames.clear()
            if data:
                self._is_writing = True
                await self.stream.send_all(data)
                self._is_writing = False
            self._give_room(len(data))
            self.gather()  # the client was slow
            if self._is_closed and not self._frames:
                return

    async def wait_for_room(self) -> None:
        """Wait until the client has read enough of what it was sent. A checkpoint only where it has not."""
        while self.num_bytes > MAX_REPLY_BACKLOG_BYTES:
            self._has_room = trio.Event()
            await self._has_room.wait()

    def close(self) -> None:
        """Let `run` end when all is sent. Idempotent."""
        self._is_closed = True
        self.unflushed.discard(self.flush_nowait)
        self._has_news.set()

    def _give_room(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes
        self._has_room.set()
