"""How late tokens are at each of two doors, and what the second adds: the times of one load, sorted out.

The gateway is measured alone and, in turn with that, beside a session that follows the same processes on the
syscall socket. What the gateway adds is told by the latter times: same steps, same tokens, both read by one
loop with one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from llmos.bench.report import Report
from llmos.bench.socket_door import Told
from llmos.bench.stream_load import Stream
from llmos.bench.workload import percentile
from syscalls.text.tokenizer import TextModel

LIMIT_MS = 10.0
PERCENTS = (50, 99, 99.9)
SPELL_SECONDS = 3.0  # with the socket's readers, or without
SETTLE_SECONDS = 0.25  # at the start of a spell, until they have begun or gone


@attrs.frozen
class Spells:
    """The measured time, cut into spells without and with the socket's readers, in turn."""

    first: float  # Unix time, as all here
    last: float
    seconds: float

    @classmethod
    def of(cls, first: float, last: float) -> Spells:
        """At least one of each kind."""
        return cls(first, last, min(SPELL_SECONDS, (last - first) / 2))

    def is_beside(self, at: float) -> bool:
        """True in a spell with the socket's readers."""
        return self.first <= at <= self.last and int((at - self.first) / self.seconds) % 2 == 1

    def counts(self, at: float) -> bool:
        """True when what happens then is measured."""
        return self.first <= at <= self.last and (at - self.first) % self.seconds >= SETTLE_SECONDS


@attrs.define
class Lateness:
    """Seconds from when there was something to tell of a token to when it came.

    `alone` is by the system's clock (see `arrival_stamp`) where it tells, the others by the reader's own.
    """

    alone: list[float] = attrs.field(factory=list)  # at the gateway's clients, no reader on the socket
    gateway: list[float] = attrs.field(factory=list)  # likewise, beside the socket's readers
    socket: list[float] = attrs.field(factory=list)  # of the same tokens, at those
    num_stamped: int = 0  # of `alone`, by the system


def due_times(stream: Stream, text: TextModel) -> list[float]:
    """When there was something to tell of each token: when the device had the one that completes its text.

    One that was told before that, beside the text of another, was due when the device had it.
    """
    decoder = text.decoder(continues=True)
    has_text = [bool(decoder.push_one(token)) for token in stream.tokens]
    due, found = [0.0] * len(stream.tokens), stream.times[-1] if stream.times else 0.0
    for index in range(len(due) - 1, -1, -1):
        found = stream.times[index] if has_text[index] else found
        is_told_early = stream.arrivals[index] < found  # however much later it was read
        due[index] = stream.times[index] if is_told_early else found
    return due


def find_lateness(
    streams: Iterable[Stream], text: TextModel, spells: Spells, told_of: Callable[[int], Told]
) -> Lateness:
    """Sort the tokens of a load. Beside the socket's readers, only those that both doors told.

    Args:
        streams: of the load.
        text: of their model.
        spells: which times are measured, and how.
        told_of: what the socket told of a process, by its pid.
    """
    lateness = Lateness()
    for stream in streams:
        told = told_of(stream.pid)
        times = zip(due_times(stream, text), stream.times, stream.arrivals, stream.reads, strict=False)
        for place, (due, made, arrival, read) in enumerate(times):
            if not spells.counts(due):
                continue
            if not spells.is_beside(due):
                lateness.alone.append(arrival - due)
                lateness.num_stamped += arrival != read
            elif due == made and place in told.arrivals and made > told.followed_at + SETTLE_SECONDS:
                lateness.gateway.append(read - due)
                lateness.socket.append(told.arrivals[place] - due)
    return lateness


def explain_difference(stream: Stream, told: Told) -> str:
    """What the socket told otherwise than the gateway; empty: nothing."""
    for place, token in told.tokens.items():
        if place >= len(stream.tokens) or stream.tokens[place] != token:
            return f"token {place} is {token} on the socket, and not at the gateway"
    return ""


def add_lateness_rows(report: Report, case: str, lateness: Lateness) -> None:
    """Write what was found into a report: a row for each percent, of each kind that was measured."""

    def add(metric: str, seconds: float, against: str, ratio: float) -> None:
        report.add(case, metric, 1e3 * seconds, "ms", against=against, ratio=ratio, runs=1)

    limit, clock = f"{LIMIT_MS:g} ms", "system's clock" if lateness.num_stamped else "reader's clock"
    for percent in PERCENTS if lateness.alone else ():
        late = percentile(lateness.alone, percent)
        add(f"P{percent} late, gateway, by the {clock}", late, limit, LIMIT_MS / max(1e3 * late, 1e-6))
    if not lateness.socket:
        return
    for percent in PERCENTS:
        late, by_socket = percentile(lateness.gateway, percent), percentile(lateness.socket, percent)
        beside = f"socket: {1e3 * by_socket:.3g} ms"
        add(f"P{percent} late, socket, beside the gateway", by_socket, limit, LIMIT_MS / (1e3 * by_socket))
        add(f"P{percent} late, gateway, beside the socket", late, beside, by_socket / late)
        added = late - by_socket
        add(f"P{percent} late, added by the gateway", added, limit, LIMIT_MS / max(1e3 * added, 1e-6))
    pairs = zip(lateness.gateway, lateness.socket, strict=True)
    added = percentile([late - by_socket for late, by_socket in pairs], 99)
    add("P99 of what the gateway adds to a token", added, limit, LIMIT_MS / max(1e3 * added, 1e-6))
