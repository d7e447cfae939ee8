"""File descriptors of a server: as many as the system allows, and one line in the log when there are none."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from typing import Final

MOST_DESCRIPTORS: Final = 65_536  # sessions, connections and files of a process stay far below
QUIET_SECONDS: Final = 10.0  # between two lines


def use_descriptors(tell: Callable[[str], None]) -> None:
    """Raise this process's limit, which its children inherit; have `tell` told when it is reached.

    Connections that find no descriptor wait in the system's queue. Trio tries ten times a second to take
    them, and would log each time where it was.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    logging.getLogger("trio.serve_listeners").addFilter(_Digest(tell))


class _Digest(logging.Filter):
    """Takes all that Trio says of listeners, and tells some of it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell
        self._quiet_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`; False: nobody else logs it."""
        if record.created >= self._quiet_until:
            self._quiet_until = record.created + QUIET_SECONDS
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self._tell(f"new connections wait: {record.getMessage()}; the limit of open files is {limit}")
        return False
