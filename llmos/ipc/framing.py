"""Length-prefixed frames over a Trio stream: one implementation for syscall sessions and driver links."""

from __future__ import annotations

import os
from types import TracebackType

import trio
from attrs import define, field

from llmos.errors import LlmosError
from syscalls.codec import MAX_FRAME_BYTES, FrameSplitter, FrameTooLarge

RECEIVE_BYTES = 64 << 10  # asked of the stream at a time; frames may be any number of these


class FrameError(LlmosError):
    """What came in is not frames: a length over the limit, or an end in the middle of one."""


@define(eq=False)
class FrameStream:
    """Reads payloads in batches and writes frames whole, from any number of tasks.

    Args:
        stream: the transport; closed with this object.
        limit: the largest payload that is accepted, in bytes.
    """

    stream: trio.abc.Stream
    limit: int = MAX_FRAME_BYTES
    _splitter: FrameSplitter = field(init=False)
    _send_lock: trio.Lock = field(init=False, factory=trio.Lock)
    _is_torn: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._splitter = FrameSplitter(self.limit)

    async def receive_payloads(self) -> list[bytes]:
        """Wait for at least one whole payload, and return all that have arrived. A checkpoint.

        Cancelled means that nothing is lost: what has arrived stays for the next call.

        Raises:
            trio.EndOfChannel: the other side closed, between two frames.
            FrameError: it closed inside a frame, or announced one over the limit.
            trio.BrokenResourceError: the connection was reset.
        """
        while True:
            # What stood before a frame over the limit was returned; nothing that still comes can mend it.
            is_blocked = self._splitter.is_blocked
            data = b"" if is_blocked else await self.stream.receive_some(RECEIVE_BYTES)
            if not data and not is_blocked:
                if self._splitter.num_pending_bytes:
                    raise FrameError(
                        f"stream ended inside a frame, {self._splitter.num_pending_bytes} bytes in"
                    )
                raise trio.EndOfChannel
            try:
                payloads = self._splitter.feed(data)
            except FrameTooLarge as error:
                raise FrameError(str(error)) from error
            if payloads:
                return payloads

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send one or more whole frames, never interleaved with those of other tasks. A checkpoint.

        Raises:
            trio.BrokenResourceError: the other side is gone, or an earlier send was cancelled and may have
                left half a frame on the wire.
        """
        async with self._send_lock:
            if self._is_torn:
                raise trio.BrokenResourceError("an earlier send did not finish")
            self._is_torn = True
            await self.stream.send_all(data)
            self._is_torn = False

    def send_nowait(self, data: bytes) -> int:
        """Send what the system takes at once of one or more whole frames; return how many bytes that was.

        The rest must come next: whoever calls this sees to it that nobody else sends on this stream. 0 as
        well when the other side is gone, which `send_all` tells. Not a checkpoint.
        """
        if self._is_torn or self._send_lock.locked() or not isinstance(self.stream, trio.SocketStream):
            return 0
        try:
            return os.write(self.stream.socket.fileno(), data)
        except OSError:  # no room, or nobody there any more
            return 0

    async def aclose(self) -> None:
        """Close the stream. A checkpoint."""
        await self.stream.aclose()

    async def __aenter__(self) -> FrameStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
