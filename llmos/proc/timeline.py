"""What happened to one process, and where its time went: what `why` shows.

A timeline is written on the way, by whoever changes a process, and must cost next to nothing: what repeats is
one entry with a count, and a token of a decode run writes nothing at all. So a process of 100 000 tokens that
is left alone has an entry for its prompt and one for its output. Entries beyond MAX_ENTRIES push the oldest
ones out; the sums stay exact.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import attrs

from llmos.proc.activity import OF_REASON, Activity
from llmos.proc.entry import Entry, Kind
from llmos.proc.telling import Telling, Watcher
from llmos.proc.turn import Rival, Turn

MAX_ENTRIES = 64

Preempted = Literal["swap", "recompute", "set aside"]  # what becomes of the memory; the last: it stays


TOLD_LATER = (Kind.DECODING, Kind.SWAPPED_OUT, Kind.SWAPPED_IN)  # to a watcher, with their tokens or bytes


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

    seconds: dict[Activity, float] = attrs.field(init=False)  # by `settle`, up to its time; they add up
    since: float = attrs.field(init=False)  # when the present activity began
    turn: Turn = attrs.field(init=False)  # the present one, or the last

    _waits_for: Activity = attrs.field(init=False, default=Activity.QUEUED)  # when it is in the queue
    _accounted_until: float = attrs.field(init=False)
    _short_before: float = attrs.field(init=False, default=0.0)
    _output_before: int = attrs.field(init=False, default=0)
    _present: Entry | None = attrs.field(init=False, default=None)  # goes on until the next activity
    _decoding: Entry | None = attrs.field(init=False, default=None)  # the last run
    _telling: Telling = attrs.field(init=False, factory=Telling)

    def __attrs_post_init__(self) -> None:
        self.entries = deque((Entry(Kind.SPAWNED, self.began, self.began, pid=self.parent),))
        self.seconds = dict.fromkeys(Activity, 0.0)
        self.since = self._accounted_until = self.began
        self.turn = Turn(self.began, dict(self.seconds))

    # --- the queue ---------------------------------------------------------------------------------------

    def given(self, now: float, num_tokens: int) -> None:
        """Input began its next turn."""
        self._add(Kind.INPUT, now, num_tokens=num_tokens)
        self._account(now)
        self.turn = Turn(now, dict(self.seconds))

    def queued(
        self,
        now: float,
        num_others: int,
        busiest: tuple[str, int] | None,
        short_seconds: float = 0.0,
        *,
        is_swapped: bool = False,
    ) -> None:
        """It waits for the device.

        Args:
            num_others: how many others wait.
            busiest: the tenant with most running processes, and how many; None: nobody runs.
            short_seconds: that the queue has been short of memory, since the device's boot.
            is_swapped: its memory is on a lower tier.
        """
        self._leave_stop(now)
        tenant = "" if busiest is None else busiest[0]
        entry = self._add(Kind.QUEUED, now, count=num_others, text=tenant)
        self.turn.note_busiest(busiest)
        self._short_before = short_seconds
        self._turn_to(now, Activity.SWAPPED if is_swapped else self._waits_for, entry)

    def admitted(self, now: float, num_cached: int) -> None:
        """It runs, from `num_cached` tokens on."""
        self._leave_stop(now)
        self._add(Kind.ADMITTED, now, num_tokens=num_cached)
        self._waits_for = Activity.QUEUED
        self._turn_to(now, Activity.PREFILL)

    # --- steps -------------------------------------------------------------------------------------------

    def computes(self, now: float, num_tokens: int) -> None:
        """A chunk of known tokens was given to the device. Chunks in a row are one entry."""
        last = self.entries[-1]
        if last.kind is Kind.PREFILL:
            last.count += 1
            last.num_tokens += num_tokens
            if self._telling.watcher is not None:
                self._telling.tell(Entry(Kind.PREFILL, now, now, num_tokens=num_tokens))
        else:
            self._present = self._add(Kind.PREFILL, now, num_tokens=num_tokens)

    def decodes(self, now: float, num_output: int, is_first: bool) -> None:
        """A token was sampled while no decode run was on record.

        Args:
            num_output: output tokens with this one.
            is_first: it is the first one of its turn.
        """
        if is_first:
            self._add(Kind.FIRST_TOKEN, now)
            self.turn.first_token_at = now
            self._account(now)
            self.turn.seconds_at_first_token = dict(self.seconds)
        if self.activity is Activity.PREFILL:
            self._decoding = self._add(Kind.DECODING, now, num_tokens=1)
            self._output_before = num_output - 1
            self._turn_to(now, Activity.DECODE, self._decoding)
            self.is_decoding = self._telling.watcher is None  # who watches wants to hear of every token
        elif is_first or self._decoding is None:  # it was stopped with a step in flight
            self._decoding = self._add(Kind.DECODING, now, num_tokens=1)
        else:
            self._decoding.num_tokens += 1
            self._decoding.until = now
        self._telling.tell_token(now)

    # --- waiting and stopping ----------------------------------------------------------------------------

    def blocked(self, now: float, reason: str) -> None:
        """It waits for something; `reason` as ps prints it."""
        self._leave_stop(now)
        entry = self._add(Kind.BLOCKED, now, text=reason)
        self._turn_to(now, OF_REASON.get(reason.partition("(")[0], Activity.BLOCKED), entry)

    def stopped(self, now: float) -> None:
        """Somebody stopped it."""
        self._turn_to(now, Activity.STOPPED, self._add(Kind.STOPPED, now))

    def ended(self, now: float, reason: str) -> None:
        """It exited."""
        self._add(Kind.ENDED, now, text=reason)
        self._turn_to(now, Activity.ENDED)

    # --- memory ------------------------------------------------------------------------------------------

    def preempted(
        self,
        now: float,
        by: Rival | None,
        how: Preempted,
        num_tokens: int = 0,
        *,
        is_fair_share: bool = False,
    ) -> None:
        """Its memory was taken, or its place alone.

        Args:
            by: for whom; None: it wanted more itself, and was last in line.
            how: what becomes of the memory.
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
        self.turn.note_preemption(by, num_tokens, is_fair_share)
        self._waits_for = Activity.QUEUED if how == "set aside" else Activity.MEMORY

    def swapped_out(self, now: float, num_bytes: int, tier: str) -> None:
        """Its memory was copied to a lower tier. Copies in a row to one tier are one entry."""
        self._add_copy(Kind.SWAPPED_OUT, now, now, num_bytes, tier)
        self.turn.num_bytes_out += num_bytes

    def swapped_in(self, now: float, num_bytes: int, seconds: float, tier: str) -> None:
        """Its memory is back from a lower tier; the copy took `seconds` and has just ended."""
        self._add_copy(Kind.SWAPPED_IN, now - seconds, now, num_bytes, tier)
        self.turn.num_bytes_in += num_bytes
        self.turn.swap_in_seconds += seconds

    def device_lost(self, now: float, num_tokens: int) -> None:
        """The device's memory is gone, and with it `num_tokens` of this process."""
        self._add(Kind.DEVICE_LOST, now, num_tokens=num_tokens)
        self.turn.num_device_losses += 1
        self._waits_for = Activity.DEVICE

    # --- watching ---------------------------------------------------------------------------------------

    def watch(self, watcher: Watcher, num_output: int) -> None:
        """Tell a watcher of everything from now on. `num_output`: output tokens so far."""
        if self.is_decoding:
            assert self._decoding is not None
            self._decoding.num_tokens = num_output - self._output_before
            self.is_decoding = False
        self._telling.begin(watcher)

    def unwatch(self, num_output: int) -> None:
        """Tell nobody any more. `num_output`: output tokens so far."""
        self._telling.end()
        if self.activity is Activity.DECODE:
            assert self._decoding is not None
            self._output_before = num_output - self._decoding.num_tokens
            self.is_decoding = True

    # --- looking -----------------------------------------------------------------------------------------

    def settle(self, now: float, num_output: int, short_seconds: float) -> None:
        """Bring what is under way up to date; to be called before it ends or is shown.

        Args:
            num_output: output tokens so far.
            short_seconds: as for `queued`.
        """
        if self.is_decoding:
            assert self._decoding is not None
            self._decoding.num_tokens = num_output - self._output_before
        if self._present is not None:
            self._present.until = now
        self._account(now, short_seconds)

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
        if self._telling.watcher is not None and kind not in TOLD_LATER:
            self._telling.tell(entry)
        return entry

    def _add_copy(self, kind: Kind, began: float, ended: float, num_bytes: int, tier: str) -> None:
        last = self.entries[-1]
        if last.kind is kind and last.text == tier:
            last.count += 1
        else:
            last = self._add(kind, began, text=tier)
        last.until = ended
        last.num_bytes += num_bytes
        if self._telling.watcher is not None:
            self._telling.tell(Entry(kind, began, ended, num_bytes=num_bytes, text=tier))

    def _turn_to(self, now: float, activity: Activity, entry: Entry | None = None) -> None:
        """Begin another activity; `entry` lasts as long as it does."""
        self._account(now)
        self.activity, self.since = activity, now
        if self._present is not None:
            self._present.until = now
        self._present = entry
        self.is_decoding = False

    def _leave_stop(self, now: float) -> None:
        if self.activity is Activity.STOPPED:
            self._add(Kind.CONTINUED, now)

    def _account(self, now: float, short_seconds: float | None = None) -> None:
        """Bring `seconds` up to date; time in the queue without memory is told only with `short_seconds`."""
        elapsed = now - self._accounted_until
        self._accounted_until = now
        if self.activity is Activity.QUEUED and short_seconds is not None:
            short = min(short_seconds - self._short_before, elapsed)
            self._short_before = short_seconds
            self.seconds[Activity.MEMORY] += short
            elapsed -= short
        self.seconds[self.activity] += elapsed
