"""What happened to one process, and where its time went: what `why` shows.

A timeline is written on the way, by whoever changes a process, and must cost next to nothing: what repeats is
one entry with a count, and a token of a decode run writes nothing at all. So a process of 100 000 tokens that
is left alone has an entry for its prompt and one for its output. Entries beyond MAX_ENTRIES push the oldest
ones out; the sums stay exact.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Protocol

import attrs

MAX_ENTRIES = 64


class Kind(enum.StrEnum):
    """What an entry says."""

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
    RESTORED = "restored"  # tokens: that were copied back instead
    ENDED = "ended"  # text: why


class Activity(enum.StrEnum):
    """What a process does with its time; it does exactly one thing at a time."""

    QUEUED = "queued"  # for its turn
    MEMORY = "memory"  # waits for memory: none was free, or it was taken away
    SWAPPED = "swapped"  # its memory is on a lower tier, or on its way back
    DEVICE = "device"  # waits for the device to come back
    SIBLING = "sibling"  # waits for a prefill whose pages it will share
    PREFILL = "prefill"
    DECODE = "decode"
    INPUT = "input"  # waits for its next turn
    BLOCKED = "blocked"  # waits for something else; its state says for what
    STOPPED = "stopped"
    ENDED = "ended"


OF_REASON = {"Input": Activity.INPUT, "Prefill": Activity.SIBLING, "Swap": Activity.SWAPPED}
"""By the name of the block reason."""

WAITS = (Activity.QUEUED, Activity.MEMORY, Activity.SWAPPED, Activity.DEVICE, Activity.SIBLING)
"""Time that passes on the kernel's account, not on the device's or the client's."""


class Rival(Protocol):
    """Another process, as far as a timeline names it."""

    @property
    def pid(self) -> int: ...
    @property
    def tenant(self) -> str: ...


@attrs.define(eq=False)
class Entry:
    """One thing that happened, or several of a kind in a row."""

    kind: Kind
    at: float  # when it began, on the kernel's clock
    until: float  # when it, or the last of its kind, ended
    count: int = 1
    num_tokens: int = 0
    num_bytes: int = 0
    pid: int | None = None
    text: str = ""


@attrs.frozen
class Preemption:
    """Why memory was taken from a process."""

    by: int | None  # None: it gave its memory up itself, since there was nobody to take any from
    tenant: str  # of the one it was for
    is_fair_share: bool  # that one's tenant had been served less


@attrs.define(eq=False)
class Timeline:
    """The record of one process. Each method takes the time on the kernel's clock; times never go back.

    Args:
        began: when it was spawned.
        parent: whose fork or sibling it is.
    """

    began: float
    parent: int | None = None
    entries: deque[Entry] = attrs.field(init=False)
    num_dropped: int = attrs.field(init=False, default=0)
    activity: Activity = attrs.field(init=False, default=Activity.QUEUED)
    is_decoding: bool = attrs.field(init=False, default=False)  # looked at for every token

    # Sums over the whole life, and what they were when the last turn began and had its first token.
    seconds: dict[Activity, float] = attrs.field(init=False)  # up to `since`
    since: float = attrs.field(init=False)  # when the present activity began
    turn_began: float = attrs.field(init=False)
    at_turn: dict[Activity, float] = attrs.field(init=False, factory=dict)
    first_token_at: float | None = attrs.field(init=False, default=None)  # of this turn
    at_first_token: dict[Activity, float] = attrs.field(init=False, factory=dict)
    preemptions: list[Preemption] = attrs.field(init=False, factory=list)  # the first few
    num_preempted: int = attrs.field(init=False, default=0)
    num_lost: int = attrs.field(init=False, default=0)  # times that the device's memory was lost
    num_bytes_out: int = attrs.field(init=False, default=0)
    num_bytes_in: int = attrs.field(init=False, default=0)
    swap_in_seconds: float = attrs.field(init=False, default=0.0)
    ahead: tuple[str, int] | None = attrs.field(init=False, default=None)  # when it was first in this turn's
    # queue: the tenant with most running processes, and how many

    _is_swapped: bool = attrs.field(init=False, default=False)
    _waits_for: Activity = attrs.field(init=False, default=Activity.QUEUED)  # when it is in the queue
    _short_before: float = attrs.field(init=False, default=0.0)
    _output_before: int = attrs.field(init=False, default=0)
    _queued: Entry | None = attrs.field(init=False, default=None)  # the last wait
    _decoding: Entry | None = attrs.field(init=False, default=None)  # the last run

    def __attrs_post_init__(self) -> None:
        self.entries = deque((Entry(Kind.SPAWNED, self.began, self.began, pid=self.parent),))
        self.seconds = dict.fromkeys(Activity, 0.0)
        self.since = self.turn_began = self.began

    # --- the queue ---------------------------------------------------------------------------------------

    def given(self, now: float, num_tokens: int) -> None:
        """Input began its next turn."""
        self._add(Kind.INPUT, now, num_tokens=num_tokens)
        self.turn_began = now
        self.at_turn = self.seconds_until(now)
        self.first_token_at = self.ahead = None

    def queued(
        self, now: float, num_others: int, ahead: tuple[str, int] | None, short_seconds: float = 0.0
    ) -> None:
        """It waits for the device.

        Args:
            num_others: how many others wait.
            ahead: the tenant with most running processes, and how many; None: nobody runs.
            short_seconds: that the queue has been short of memory, since the device's boot.
        """
        self._leave_stop(now)
        self._close_decoding(now)
        self._queued = self._add(Kind.QUEUED, now, count=num_others, text="" if ahead is None else ahead[0])
        if self.first_token_at is None and self.ahead is None:
            self.ahead = ahead
        self._short_before = short_seconds
        self._turn_to(now, Activity.SWAPPED if self._is_swapped else self._waits_for)

    def admitted(self, now: float, num_cached: int, short_seconds: float = 0.0) -> None:
        """It runs, from `num_cached` tokens on; `short_seconds` as for `queued`."""
        self._leave_stop(now)
        if self.activity is Activity.QUEUED:
            self.seconds[Activity.MEMORY] += (short := self._short_part(now, short_seconds))
            self.seconds[Activity.QUEUED] -= short
        if self._queued is not None:
            self._queued.until = now
        self._add(Kind.ADMITTED, now, num_tokens=num_cached)
        self._is_swapped = False
        self._waits_for = Activity.QUEUED
        self._turn_to(now, Activity.PREFILL)

    # --- steps -------------------------------------------------------------------------------------------

    def computes(self, now: float, num_tokens: int) -> None:
        """A chunk of known tokens was given to the device. Chunks in a row are one entry."""
        last = self.entries[-1]
        if last.kind is Kind.PREFILL:
            last.until = now
            last.count += 1
            last.num_tokens += num_tokens
        else:
            self._add(Kind.PREFILL, now, num_tokens=num_tokens)

    def decodes(self, now: float, num_output: int, is_first: bool) -> None:
        """A token was sampled while no decode run was on record.

        Args:
            num_output: output tokens with this one.
            is_first: it is the first one of its turn.
        """
        if self.entries[-1].kind is Kind.PREFILL:
            self.entries[-1].until = now
        if is_first:
            self._add(Kind.FIRST_TOKEN, now)
            self.first_token_at = now
            self.at_first_token = self.seconds_until(now)
        if self.activity is Activity.PREFILL:
            self._decoding = self._add(Kind.DECODING, now, num_tokens=1)
            self._output_before = num_output - 1
            self.is_decoding = True
            self._turn_to(now, Activity.DECODE)
        elif is_first or self._decoding is None:  # it was stopped with a step in flight
            self._decoding = self._add(Kind.DECODING, now, num_tokens=1)
        else:
            self._decoding.num_tokens += 1
            self._decoding.until = now

    # --- waiting and stopping ----------------------------------------------------------------------------

    def blocked(self, now: float, reason: str) -> None:
        """It waits for something; `reason` as ps prints it."""
        self._leave_stop(now)
        self._close_decoding(now)
        self._add(Kind.BLOCKED, now, text=reason)
        self._turn_to(now, OF_REASON.get(reason.partition("(")[0], Activity.BLOCKED))

    def stopped(self, now: float) -> None:
        """Somebody stopped it."""
        self._close_decoding(now)
        self._add(Kind.STOPPED, now)
        self._turn_to(now, Activity.STOPPED)

    def ended(self, now: float, reason: str) -> None:
        """It exited."""
        self._close_decoding(now)
        self._add(Kind.ENDED, now, text=reason)
        self._turn_to(now, Activity.ENDED)

    # --- memory ------------------------------------------------------------------------------------------

    def preempted(
        self, now: float, by: Rival | None, how: str, num_tokens: int = 0, *, is_fair_share: bool = False
    ) -> None:
        """Its memory was taken.

        Args:
            by: for whom; None: nobody else had any to take, so it gave up its own.
            how: "recompute" or "swap".
            num_tokens: that it must compute again.
            is_fair_share: the other one's tenant had been served less.
        """
        self._add(
            Kind.PREEMPTED,
            now,
            num_tokens=num_tokens,
            pid=None if by is None else by.pid,
            text=how if by is None or not is_fair_share else f"{how}, fair share of {by.tenant}",
        )
        self.num_preempted += 1
        if len(self.preemptions) < MAX_ENTRIES:
            tenant = "" if by is None else by.tenant
            self.preemptions.append(Preemption(None if by is None else by.pid, tenant, is_fair_share))
        self._waits_for = Activity.MEMORY

    def swapped_out(self, now: float, num_bytes: int, tier: str) -> None:
        """Its memory was copied to a lower tier. Copies in a row to one tier are one entry."""
        self._add_copy(Kind.SWAPPED_OUT, now, now, num_bytes, tier)
        self.num_bytes_out += num_bytes
        self._is_swapped = True
        if self.activity in (Activity.QUEUED, Activity.MEMORY):
            self._turn_to(now, Activity.SWAPPED)

    def swapped_in(self, now: float, num_bytes: int, seconds: float, tier: str) -> None:
        """Its memory is back from a lower tier; the copy took `seconds` and has just ended."""
        self._add_copy(Kind.SWAPPED_IN, now - seconds, now, num_bytes, tier)
        self.num_bytes_in += num_bytes
        self.swap_in_seconds += seconds
        self._is_swapped = False

    def device_lost(self, now: float, num_tokens: int) -> None:
        """The device's memory is gone, and with it `num_tokens` of this process."""
        self._add(Kind.DEVICE_LOST, now, num_tokens=num_tokens)
        self.num_lost += 1
        self._waits_for = Activity.DEVICE

    def restored(self, now: float, num_tokens: int, tier: str) -> None:
        """After a loss, `num_tokens` were copied back from a lower tier instead of being computed again."""
        self._add(Kind.RESTORED, now, num_tokens=num_tokens, text=tier)

    # --- looking -----------------------------------------------------------------------------------------

    def seconds_until(self, now: float, short_seconds: float | None = None) -> dict[Activity, float]:
        """Time spent on each activity so far; the values add up to the age. A new dict.

        Args:
            short_seconds: as for `queued`; None: time in the queue is not told from time without memory.
        """
        seconds = dict(self.seconds)
        seconds[self.activity] += now - self.since
        if short_seconds is not None and self.activity is Activity.QUEUED:
            short = self._short_part(now, short_seconds)
            seconds[Activity.MEMORY] += short
            seconds[Activity.QUEUED] -= short
        return seconds

    def settle(self, num_output: int) -> None:
        """Bring the decode run that is under way up to date; to be called before it ends or is shown."""
        if self.is_decoding:
            assert self._decoding is not None
            self._decoding.num_tokens = num_output - self._output_before

    # --- inside ------------------------------------------------------------------------------------------

    def _add(
        self,
        kind: Kind,
        now: float,
        *,
        count: int = 1,
        num_tokens: int = 0,
        pid: int | None = None,
        text: str = "",
    ) -> Entry:
        if len(self.entries) == MAX_ENTRIES:
            self.entries.popleft()
            self.num_dropped += 1
        entry = Entry(kind, now, now, count, num_tokens, 0, pid, text)
        self.entries.append(entry)
        return entry

    def _add_copy(self, kind: Kind, began: float, ended: float, num_bytes: int, tier: str) -> None:
        last = self.entries[-1]
        if last.kind is kind and last.text == tier:
            last.count += 1
        else:
            last = self._add(kind, began, text=tier)
        last.until = ended
        last.num_bytes += num_bytes

    def _turn_to(self, now: float, activity: Activity) -> None:
        self.seconds[self.activity] += now - self.since
        self.activity, self.since = activity, now

    def _close_decoding(self, now: float) -> None:
        if self.is_decoding:
            assert self._decoding is not None
            self._decoding.until = now
            self.is_decoding = False

    def _leave_stop(self, now: float) -> None:
        if self.activity is Activity.STOPPED:
            self._add(Kind.CONTINUED, now)

    def _short_part(self, now: float, short_seconds: float) -> float:
        """How much of the present wait in the queue was for want of memory."""
        return max(0.0, min(short_seconds - self._short_before, now - self.since))
