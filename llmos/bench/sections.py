"""Which parts of a benchmark are run."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.config import ConfigError


def choose_sections(listed: str | None, sections: Sequence[str]) -> list[str]:
    """The sections that a list names, in their own order; None: all. Raises ConfigError."""
    names = sections if listed is None else [name.strip() for name in listed.split(",")]
    for name in names:
        if name not in sections:
            raise ConfigError(f"section {name!r} is not one of {', '.join(sections)}")
    return [name for name in sections if name in names]
