"""A copy under way between the tiers of memory."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from attrs import define, field

from llmos.device import Tier
from llmos.mm.page_copy import PageCopy
from llmos.mm.page_table import PageFrames

Finish = Callable[["Transfer"], None]
"""Called when a transfer has ended, with its faults filled in."""


class Direction(enum.Enum):
    """Which way a transfer goes."""

    OUT = "out"  # from the device
    IN = "in"  # to the device
    DOWN = "down"  # from the host area to the swap file
    SAVE = "save"  # to a file, from wherever the pages are


@define(eq=False)
class Transfer:
    """One copy under way."""

    id: int
    direction: Direction
    tier: Tier  # the one below: it comes from there, or goes there
    pages: list[PageCopy]  # of the copies on that tier
    frames: list[PageFrames]  # fenced
    vpns: list[int]
    num_bytes: int
    on_end: Finish | None = None
    sources: list[PageCopy] = field(factory=list)  # of DOWN and SAVE: where they come from
    last_step: int = 0  # that the device was sent before it
    seconds: float = 0.0  # that it took; filled in at its end
    faults: dict[int, str] = field(factory=dict)  # vpn: why; filled in at its end


def in_runs(pages: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Slots of pages, segment by segment: each segment of adjacent pages is a run of adjacent slots."""
    return tuple(slot for segment in zip(*pages, strict=True) for slot in segment)


def checksums_of(copies: Sequence[PageCopy]) -> tuple[int, ...]:
    """Of what is read from disk or a file, slot by slot as `in_runs` orders them; empty from memory."""
    if not copies or not all(copy.checksums for copy in copies):
        return ()
    return in_runs([copy.checksums for copy in copies])
