"""The looks of the live page at the kernel: taken for all viewers of a session, and sent as what changed.

Nobody samples while nobody watches: there is no task, the first viewer that wants news takes the next look,
and the others wait for it and are sent the same bytes.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs
import trio

from shell.gateway.page_rows import Json, Row, describe_device, describe_row, difference, percentiles
from shell.gateway.sse import encode_event
from syscalls.client import Client
from syscalls.process import ProcessInfo

PERIOD_SECONDS = 0.5
REST = 20  # after a look at least so many times as long as it took: at most 5 % of the time goes to it
LONGEST_SECONDS = 5.0  # of rest
SLOW_EVERY = 2  # looks: the frame map costs the kernel a walk over all pages
MAX_ROWS = 2000
MAX_EVENTS = 200  # of a look, and kept for the next viewer
NUM_LATENCIES = 512  # the last processes seen, for percentiles


def next_look(began: float, ended: float) -> float:
    """Return when to look again after a look that lasted so long: a busy kernel is asked less often."""
    return max(began + PERIOD_SECONDS, ended + min(REST * (ended - began), LONGEST_SECONDS))


@attrs.define(eq=False)
class Sampler:
    """The looks of one session, which sees its tenant's processes, or as an administrator everybody's."""

    client: Client
    num_viewers: int = 0  # written by the stream's endpoint
    version: int = 0  # of the last look; 0: none yet
    _rows: dict[int, Row] = attrs.field(factory=dict)
    _shares: dict[str, tuple[str, int, int]] = attrs.field(factory=dict)
    _rest: Json = attrs.field(factory=dict)
    _delta: bytes = b""
    _events: deque[Row] = attrs.field(factory=lambda: deque(maxlen=MAX_EVENTS))
    _next_event: int = 0
    _latencies: deque[tuple[float, float]] = attrs.field(factory=lambda: deque(maxlen=NUM_LATENCIES))
    _noted: set[int] = attrs.field(factory=set)  # pids alive whose latencies are among them
    _next_look: float = float("-inf")
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def next(self, version: int) -> tuple[int, bytes]:
        """Return the first look after `version`, as an event: what changed, or all when some were missed.

        Raises: ConnectionLost, SyscallError.
        """
        async with self._lock:
            if version == self.version:
                await trio.sleep_until(self._next_look)
                began = trio.current_time()
                await self._look()
                ended = trio.current_time()
                self._next_look = next_look(began, ended)
            if version and version == self.version - 1:
                return self.version, self._delta
            whole: Json = {"whole": True, "new": list(self._rows.values()), "changed": {}, "gone": []}
            whole |= {"shares": list(self._shares.values()), "events": list(self._events)}
            return self.version, encode_event(whole | self._rest)

    async def _look(self) -> None:
        client = self.client
        is_admin = client.welcome.admin
        found = [each for each in await client.ps(everyone=is_admin) if each.state != "ZOMBIE"]
        statistics = await client.statistics()
        events = await client.events(self._next_event, MAX_EVENTS)
        rest: Json = {
            "tenant": client.welcome.tenant,
            "admin": is_admin,
            "num_rows": len(found),
            "uptime": round(statistics.uptime_seconds, 3),
            "running": statistics.num_running,
            "waiting": statistics.num_waiting,
            "preemptions": statistics.num_preemptions,
            "latency": self._note_latencies(found),
        }
        shares = self._shares
        if self.version % SLOW_EVERY == 0:
            rest["devices"] = await self._look_at_devices()
            shares = {
                each.tenant: (each.tenant, each.num_prompt_tokens, each.num_output_tokens)
                for each in await client.shares(memory=False)
            }
        rows = {each.pid: describe_row(each) for each in found[-MAX_ROWS:]}
        new, changed, gone = difference(self._rows, rows)
        seen = rows.keys() | self._rows.keys()
        news = [
            (each.sequence, each.time, each.level, each.subsystem, each.text, each.pid)
            for each in events
            if is_admin or each.pid in seen  # others' lives are not this viewer's business
        ]
        # From here on nothing waits: a viewer that is cancelled leaves either the old look or the new one.
        if events:
            self._next_event = events[-1].sequence + 1
        self._events.extend(news)
        delta: Json = {"new": new, "changed": changed, "gone": gone, "events": news}
        delta |= {key: value for key, value in rest.items() if self._rest.get(key) != value}
        if self.version % SLOW_EVERY == 0:
            delta["shares"] = [each for each in shares.values() if self._shares.get(each[0]) != each]
        self._delta = encode_event(delta)
        self._rows, self._shares, self._rest = rows, shares, self._rest | rest
        self.version += 1

    async def _look_at_devices(self) -> list[Any]:
        frame_maps = {each.device: each for each in await self.client.frames()}
        return [describe_device(each, frame_maps.get(each.name)) for each in await self.client.devices()]

    def _note_latencies(self, found: list[ProcessInfo]) -> Json:
        """Remember how long processes waited for their first step and for their first token; seconds."""
        started = {each.pid: each.usage for each in found if each.usage.first_token_seconds is not None}
        for pid in started.keys() - self._noted:
            usage = started[pid]
            self._latencies.append((usage.queued_seconds, usage.first_token_seconds or 0.0))
        self._noted = set(started)
        queued, first = zip(*self._latencies, strict=True) if self._latencies else ((), ())
        return {"queued": percentiles(list(queued)), "first": percentiles(list(first))}
