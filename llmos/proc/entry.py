"""What a timeline is made of: one thing that happened to a process, or several of a kind in a row."""

from __future__ import annotations

import enum

import attrs


class Kind(enum.StrEnum):
    """What an entry of a timeline says."""

    SPAWNED = "spawned"  # pid: its parent
    INPUT = "input"  # tokens written to it
    QUEUED = "queued"  # count: how many others waited; text: the tenant with most running processes
    ADMITTED = "admitted"  # tokens: that were in memory already, and need not be computed
    PREFILL = "prefill"  # count: chunks; tokens: in all of them
    FIRST_TOKEN = "first token"
    DECODING = "decoding"  # tokens
    BLOCKED = "blocked"  # text: on what
    STOPPED = "stopped"
    CONTINUED = "continued"
    PREEMPTED = "preempted"  # pid: for whom; tokens: to be computed again
    SWAPPED_OUT = "swapped out"  # text: to which tier; bytes
    SWAPPED_IN = "swapped in"  # text: from which tier; bytes
    DEVICE_LOST = "device lost"  # tokens: to be computed again
    ENDED = "ended"  # text: why


@attrs.define(eq=False)
class Entry:
    """One thing that happened, or several of a kind in a row."""

    kind: str  # a Kind; a trace has others besides
    at: float  # when it began, on the kernel's clock
    until: float  # when it, or the last of its kind, ended
    count: int = 1
    num_tokens: int = 0
    num_bytes: int = 0
    pid: int | None = None
    text: str = ""
