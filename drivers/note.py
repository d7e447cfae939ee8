"""What a driver has to say to whoever reads its standard error."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress


def note(text: str) -> None:
    """Write a line, if it is taken at once; of a very long one the beginning.

    A disk that is full, and a reader that left or has stopped, neither end nor hold up the driver.
    """
    if sys.stderr is None:  # the process was started without
        return
    with suppress(OSError, ValueError):  # ValueError: what stands for it has no descriptor
        descriptor = sys.stderr.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if poll.poll(0):
            os.write(descriptor, text.encode(errors="backslashreplace")[: select.PIPE_BUF - 1] + b"\n")
