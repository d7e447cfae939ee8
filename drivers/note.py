"""What a driver has to say to whoever reads its standard error."""

from __future__ import annotations

import sys
from contextlib import suppress


def note(text: str) -> None:
    """Write a line. A disk that is full, or a reader that left, must not end the driver."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
