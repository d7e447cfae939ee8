"""What happened to a process in one turn: between its input and the end of its output."""

from __future__ import annotations

from typing import Protocol

import attrs

from llmos.proc.activity import Activity

MAX_PREEMPTIONS = 64  # that are told apart


class Rival(Protocol):
    """Another process, as far as it is named."""

    @property
    def pid(self) -> int: ...
    @property
    def tenant(self) -> str: ...


@attrs.frozen
class Preemption:
    """Why memory was taken from a process."""

    by: int | None  # None: it wanted more itself, and was last in line
    fair_share_of: str | None  # the tenant that had been served less; None: that was not the reason


@attrs.define(eq=False)
class Turn:
    """Sums of one turn; times are on the kernel's clock."""

    began: float
    seconds_at_begin: dict[Activity, float]
    first_token_at: float | None = None
    seconds_at_first_token: dict[Activity, float] = attrs.field(factory=dict)
    busiest: tuple[str, int] | None = None  # tenant with most running processes while it waited to start
    preemptions: list[Preemption] = attrs.field(factory=list)  # the first ones
    num_preempted: int = 0
    num_lost_tokens: int = 0  # to be computed again, after preemptions
    num_device_losses: int = 0
    num_bytes_out: int = 0
    num_bytes_in: int = 0
    swap_in_seconds: float = 0.0

    def note_busiest(self, busiest: tuple[str, int] | None) -> None:
        """It waits at this moment, and so many processes of that tenant run; the most is kept."""
        if (
            busiest is not None
            and self.first_token_at is None
            and (self.busiest is None or busiest[1] > self.busiest[1])
        ):
            self.busiest = busiest

    def note_preemption(self, by: Rival | None, num_tokens: int, is_fair_share: bool) -> None:
        """Memory was taken, and with it `num_tokens` that must be computed again."""
        self.num_preempted += 1
        self.num_lost_tokens += num_tokens
        if len(self.preemptions) < MAX_PREEMPTIONS:
            tenant = by.tenant if by is not None and is_fair_share else None
            self.preemptions.append(Preemption(None if by is None else by.pid, tenant))
