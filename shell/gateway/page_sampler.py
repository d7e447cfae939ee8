"""What the live page shows: one look at the kernel, and how it differs from the one before.

Nobody samples while nobody watches: there is no task, the first viewer that wants news takes the next look,
and the others wait for it and are sent the same bytes.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs
import trio

from shell.gateway.sse import encode_event
from syscalls.client import Client
from syscalls.process import ProcessInfo

PERIOD_SECONDS = 0.5
MEMORY_EVERY = 2  # looks: the frame map costs the kernel a walk over all pages
MAX_ROWS = 2000
MAX_EVENTS = 200
NUM_LATENCIES = 512  # the last processes seen, for percentiles
PERCENTILES = (50, 95, 99)

Json = dict[str, Any]
Row = tuple[Any, ...]


def percentiles(values: list[float]) -> list[float]:
    """Return the PERCENTILES by nearest rank, in the unit of the values; [] of nothing."""
    ordered = sorted(values)
    return [ordered[-(-len(ordered) * each // 100) - 1] for each in PERCENTILES] if ordered else []


def describe_row(process: ProcessInfo) -> Row:
    """Return what the table shows of a process. It differs only when something happened to the process."""
    usage = process.usage
    return (
        process.pid,
        process.tenant,
        process.activity,
        process.label,
        process.model,
        process.nice,
        process.num_tokens,
        usage.num_prompt_tokens,
        usage.num_output_tokens,
        process.num_resident_bytes,
        usage.num_preemptions,
    )


def difference(before: dict[int, Row], now: dict[int, Row]) -> tuple[list[Row], list[int]]:
    """Return the rows that are new or changed, and the pids that are gone."""
    return [row for pid, row in now.items() if before.get(pid) != row], [
        pid for pid in before if pid not in now
    ]


@attrs.define(eq=False)
class Sampler:
    """The looks of one session, which sees its tenant's processes, or as an administrator everybody's."""

    client: Client
    num_viewers: int = 0  # written by the stream's endpoint
    version: int = 0  # of the last look; 0: none yet
    _rows: dict[int, Row] = attrs.field(factory=dict)
    _rest: Json = attrs.field(factory=dict)
    _delta: bytes = b""
    _events: deque[Row] = attrs.field(factory=lambda: deque(maxlen=MAX_EVENTS))
    _next_event: int = 0
    _latencies: dict[int, tuple[float, float]] = attrs.field(factory=dict)  # by pid: queued, first token
    _last_look: float = float("-inf")
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def next(self, version: int) -> tuple[int, bytes]:
        """Return the first look after `version`, as an event: what changed, or all when some were missed.

        Raises: ConnectionLost, SyscallError.
        """
        async with self._lock:
            if version == self.version:
                await trio.sleep_until(self._last_look + PERIOD_SECONDS)
                await self._look()
            if version and version == self.version - 1:
                return self.version, self._delta
            whole = {"whole": True, "rows": list(self._rows.values()), "gone": [], **self._rest}
            return self.version, encode_event({**whole, "events": list(self._events)})

    async def _look(self) -> None:
        client = self.client
        is_admin = client.welcome.admin
        found = [each for each in await client.ps(everyone=is_admin) if each.state != "ZOMBIE"]
        statistics = await client.statistics()
        shares = await client.shares()
        events = await client.events(self._next_event, MAX_EVENTS)
        rest: Json = {
            "tenant": client.welcome.tenant,
            "admin": is_admin,
            "num_rows": len(found),
            "shares": [(each.tenant, each.num_prompt_tokens, each.num_output_tokens) for each in shares],
            "uptime": round(statistics.uptime_seconds, 3),
            "running": statistics.num_running,
            "waiting": statistics.num_waiting,
            "preemptions": statistics.num_preemptions,
            "latency": self._note_latencies(found),
        }
        if self.version % MEMORY_EVERY == 0:
            rest["memory"] = await client.frames()
        rows = {each.pid: describe_row(each) for each in found[-MAX_ROWS:]}
        changed, gone = difference(self._rows, rows)
        seen = {*rows, *self._rows}
        news = [
            (each.sequence, each.time, each.level, each.subsystem, each.text, each.pid)
            for each in events
            if is_admin or each.pid in seen  # others' lives are not this viewer's business
        ]
        # From here on nothing waits: a viewer that is cancelled leaves either the old look or the new one.
        if events:
            self._next_event = events[-1].sequence + 1
        self._events.extend(news)
        fresh = {key: value for key, value in rest.items() if self._rest.get(key) != value}
        self._delta = encode_event({"rows": changed, "gone": gone, "events": news, **fresh})
        self._rows, self._rest = rows, {**self._rest, **rest}
        self.version += 1
        self._last_look = trio.current_time()

    def _note_latencies(self, found: list[ProcessInfo]) -> Json:
        """Remember how long the processes seen have waited; seconds."""
        for each in found:
            if each.usage.first_token_seconds is not None and each.pid not in self._latencies:
                self._latencies[each.pid] = (each.usage.queued_seconds, each.usage.first_token_seconds)
        for pid in list(self._latencies)[:-NUM_LATENCIES]:
            del self._latencies[pid]
        queued, first = zip(*self._latencies.values(), strict=True) if self._latencies else ((), ())
        return {"queued": percentiles(list(queued)), "first": percentiles(list(first))}
