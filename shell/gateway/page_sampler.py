"""The looks of the live page at the kernel: taken for all viewers of a session, and sent as what changed.

Nobody samples while nobody watches: there is no task, the first viewer that wants news takes the next look,
and the others wait for it and are sent the same bytes.
"""

from __future__ import annotations

from collections import deque

import attrs
import trio

from shell.gateway.page_look import MAX_EVENTS, take_look
from shell.gateway.page_rows import Json, Row, describe_device, describe_row, difference
from shell.gateway.sse import encode_event
from shell.gateway.waits import Pace, Waits
from syscalls.client import Client

PERIOD_SECONDS = 0.5
MANY = 1000  # processes: with more, looks are rarer in proportion, so that they cost the kernel no more
SLOW_EVERY = 2  # looks: the frame map costs the kernel a walk over all pages
MAX_ROWS = 2000
HISTORY_SECONDS = 120.0  # of shares: whoever opens the page is told those, if somebody watched

ShareRow = tuple[str, float, int, int]  # tenant, weight, tokens of prompts, of output


def next_look(began: float, ended: float, num_processes: int) -> float:
    """Return when to look again: at the period, and after a rest as long as a kernel that is busy took."""
    return max(began + PERIOD_SECONDS * max(1.0, num_processes / MANY), ended + (ended - began))


def changed_shares(before: dict[str, ShareRow], now: dict[str, ShareRow]) -> list[ShareRow]:
    """Return the rows that are new or other than they were."""
    return [row for tenant, row in now.items() if before.get(tenant) != row]


@attrs.define(eq=False)
class Sampler:
    """The looks of one session, which sees its tenant's processes, or as an administrator everybody's."""

    client: Client
    waits: Waits  # of the whole gateway
    num_viewers: int = 0  # written by the stream's endpoint
    left_at: float = 0.0  # when the last viewer left, on the run's clock; by the same
    version: int = 0  # of the last look; 0: none yet
    _rows: dict[int, Row] = attrs.field(factory=dict)
    _history: deque[tuple[float, dict[str, ShareRow]]] = attrs.field(factory=deque)  # by uptime and tenant
    _rest: Json = attrs.field(factory=dict)
    _delta: bytes = b""
    _events: deque[Row] = attrs.field(factory=lambda: deque(maxlen=MAX_EVENTS))
    _next_event: int = 0
    _pace: Pace = attrs.field(factory=Pace)
    _next_look: float = float("-inf")
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def next(self, version: int) -> tuple[int, bytes]:
        """Return the first look after `version`, as an event: what changed, or all when some were missed.

        Raises, in a group: ConnectionLost, SyscallError.
        """
        async with self._lock:
            is_stale = trio.current_time() > self._next_look + PERIOD_SECONDS  # nobody was there to want it
            if version == self.version or is_stale:
                await trio.sleep_until(self._next_look)
                began = trio.current_time()
                await self._look()
                ended = trio.current_time()
                self._next_look = next_look(began, ended, self._rest["num_rows"])
            if version and version == self.version - 1:
                return self.version, self._delta
            whole: Json = {"whole": True, "new": list(self._rows.values()), "changed": {}, "gone": []}
            whole |= {"history": self._tell_history(), "events": list(self._events)}
            return self.version, encode_event(whole | self._rest)

    async def _look(self) -> None:
        is_admin = self.client.welcome.admin
        look = await take_look(self.client, self._next_event, is_quick=self.version % SLOW_EVERY != 0)
        # From here on nothing waits: a viewer that is cancelled leaves either the old look or the new one.
        rows = {each.pid: describe_row(each) for each in look.processes[-MAX_ROWS:]}
        new, changed, gone = difference(self._rows, rows)
        seen = rows.keys() | self._rows.keys()
        news = [
            (each.sequence, each.time, each.level, each.subsystem, each.text, each.pid)
            for each in look.events
            if is_admin or each.pid in seen  # others' lives are not this viewer's business
        ]
        if look.events:
            self._next_event = look.events[-1].sequence + 1
        self._events.extend(news)
        rest: Json = {
            "tenant": self.client.welcome.tenant,
            "admin": is_admin,
            "num_rows": len(look.processes),
            "uptime": round(look.statistics.uptime_seconds, 3),
            "version": look.statistics.version,
            "preemptions": look.statistics.num_preemptions
            if is_admin
            else sum(each.usage.num_preemptions for each in look.processes),
        }
        if is_admin:
            rest |= {"running": look.statistics.num_running, "waiting": look.statistics.num_waiting}
        if look.devices is not None:
            maps = {each.device: each for each in look.frame_maps or ()}
            rest["devices"] = [describe_device(each, maps.get(each.name)) for each in look.devices]
        if look.shares is not None:
            now = trio.current_time()
            self.waits.note_living(look.processes, self._pace, now)
            rest["latency"] = self.waits.percentiles(None if is_admin else self.client.welcome.tenant, now)
            if not is_admin:  # what others do is not this viewer's business
                rest["running"] = sum(each.num_running for each in look.shares)
                rest["waiting"] = sum(each.num_waiting for each in look.shares)
        delta: Json = {"new": new, "changed": changed, "gone": gone, "events": news}
        delta |= {key: value for key, value in rest.items() if self._rest.get(key) != value}
        if look.shares is not None:
            shares = {
                each.tenant: (each.tenant, each.weight, each.num_prompt_tokens, each.num_output_tokens)
                for each in look.shares
            }
            delta["shares"] = changed_shares(self._history[-1][1] if self._history else {}, shares)
            self._history.append((rest["uptime"], shares))
            while len(self._history) > 1 and self._history[1][0] < rest["uptime"] - HISTORY_SECONDS:
                self._history.popleft()
        self._delta = encode_event(delta)
        self._rows, self._rest = rows, self._rest | rest
        self.version += 1

    def _tell_history(self) -> list[tuple[float, list[ShareRow]]]:
        """Return uptimes with the shares that had changed since the one before; first all of them."""
        told, before = [], dict[str, ShareRow]()
        for uptime, shares in self._history:
            told.append((uptime, changed_shares(before, shares)))
            before = shares
        return told
