"""What others wrote, made fit for a log of lines: a path or a label must not drive a terminal."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any


def escape_texts(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: write what cannot be printed in an event's texts as Python does.

    Modifies `event`. Values of other types are printed by `repr`, which does the same.
    """
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = "".join(char if char.isprintable() else repr(char)[1:-1] for char in value)
    return event
