"""What clients waited for lately: of processes that the live page saw, and of requests that ended here.

A request may be over between two looks at the kernel; the gateway knows what it took all the same.
"""

from __future__ import annotations

import attrs

from syscalls.process import ProcessInfo

PERIOD_SECONDS = 300.0  # what is told is of so long
MAX_WAITS = 2000  # processes: the last ones
PERCENTILES = (50, 95, 99)


@attrs.frozen
class Wait:
    """One process; seconds. None: not known, or not yet."""

    tenant: str
    at: float  # on the run's clock, when it was noted
    queued: float
    first_token: float
    between_tokens: float | None


@attrs.define(eq=False)
class Waits:
    """The last processes by pid: what is known of one replaces what was known before."""

    _by_pid: dict[int, Wait] = attrs.field(factory=dict)  # the longest unnoted first

    def note(self, pid: int, wait: Wait) -> None:
        """Remember a process, and forget the one that nobody has noted for longest."""
        self._by_pid.pop(pid, None)
        self._by_pid[pid] = wait
        if len(self._by_pid) > MAX_WAITS:
            self._by_pid.pop(next(iter(self._by_pid)))

    def note_living(self, found: list[ProcessInfo], pace: Pace, now: float) -> None:
        """Remember what a look shows of processes that have a first token; `pace` saw the looks before."""
        gaps = pace.take(found, now)
        for each in found:
            usage, old = each.usage, self._by_pid.get(each.pid)
            if usage.first_token_seconds is None or each.activity == "input":  # that was an earlier turn
                continue
            between = gaps.get(each.pid, old.between_tokens if old is not None else None)
            wait = Wait(each.tenant, now, usage.queued_seconds, usage.first_token_seconds, between)
            self.note(each.pid, wait)

    def percentiles(self, tenant: str | None, now: float) -> dict[str, list[float]]:
        """Return PERCENTILES of each wait over the last PERIOD_SECONDS, of a tenant or of all; [] of none."""
        found = [
            wait
            for wait in self._by_pid.values()
            if tenant in (None, wait.tenant) and now - wait.at <= PERIOD_SECONDS
        ]
        return {
            "queued": percentiles([wait.queued for wait in found]),
            "first": percentiles([wait.first_token for wait in found]),
            "between": percentiles([w.between_tokens for w in found if w.between_tokens is not None]),
        }


@attrs.define(eq=False)
class Pace:
    """How fast tokens came, by looks at processes that did nothing else from one to the next."""

    _last: dict[int, tuple[int, float]] = attrs.field(factory=dict)  # tokens by pid, and since when so many

    def take(self, found: list[ProcessInfo], now: float) -> dict[int, float]:
        """Return, by pid, the seconds between two tokens where there are new ones since an earlier look."""
        gaps, last = {}, {}
        for each in found:
            if each.activity != "decode":
                continue
            count = each.usage.num_output_tokens
            before, at = self._last.get(each.pid, (count, now))
            if count > before:
                gaps[each.pid] = (now - at) / (count - before)
                at = now
            last[each.pid] = (count, at)
        self._last = last
        return gaps


def percentiles(values: list[float]) -> list[float]:
    """Return the PERCENTILES by nearest rank, in the unit of the values; [] of nothing."""
    ordered = sorted(values)
    return [ordered[-(-len(ordered) * each // 100) - 1] for each in PERCENTILES] if ordered else []
