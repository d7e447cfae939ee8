"""A large body while it arrives: a file in memory, outside of the interpreter's."""

from __future__ import annotations

import os

import attrs
import trio

LARGE_BYTES = 256 << 10  # from here on a body is large: decoding less takes a few milliseconds


@attrs.define(eq=False)
class BodyFile:
    """Grows by what is written to it. It has no name, so nothing of it is left however we end."""

    descriptor: int = attrs.field(factory=lambda: os.memfd_create("llmos-body"))

    def write(self, data: bytes | bytearray) -> None:
        """Append. Raises OSError when there is no memory. Not a checkpoint."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]

    def close(self) -> None:
        """Give the memory back, now or soon; twice is once. Not a checkpoint.

        Done in a thread: to free 64 MiB takes the system some milliseconds.
        """
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            trio.lowlevel.start_thread_soon(lambda: os.close(descriptor), lambda _: None)
