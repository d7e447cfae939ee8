"""Which processes somebody follows, and those of them that ended lately."""

from __future__ import annotations

from collections import OrderedDict

import attrs

from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Pid, Process
from llmos.proc.trace import Trace
from syscalls.errno import Errno, SyscallError
from syscalls.process import MAX_TRACED

MAX_ENDED = 16


@attrs.define(eq=False)
class Traces:
    """The processes with a trace. While `live` is empty, tracing costs a look at that.

    One that has ended is kept for a while after it was reaped: whoever follows it may just be reading what
    came before its end, and a process of the gateway is reaped with its last token.
    """

    live: dict[Pid, Process] = attrs.field(init=False, factory=dict)
    _ended: OrderedDict[Pid, Process] = attrs.field(init=False, factory=OrderedDict)

    def ended(self, pid: int) -> Process | None:
        """Return a followed process that has ended, reaped or not, while it is kept."""
        return self._ended.get(Pid(pid))

    def begin(self, process: Process, now: float, short_seconds: float, since: int) -> Trace:
        """Begin to write a process's events.

        Args:
            process: that nobody follows yet.
            now: on the kernel's clock.
            short_seconds: as for `Timeline.queued`.
            since: the event that its caller asks for; 0: a newcomer, who is told first what the timeline has
                kept. Any other followed it before, and did not ask for so long that the trace has ended.

        Raises:
            SyscallError: EAGAIN, too many of the tenant's processes are followed.
        """
        num_traced = sum(other.tenant == process.tenant for other in self.live.values())
        if num_traced >= MAX_TRACED:
            raise SyscallError(
                Errno.EAGAIN,
                f"{num_traced} processes of tenant {process.tenant} are traced, the most that may",
            )
        timeline = process.timeline
        timeline.settle(now, len(process.output), short_seconds)

        def forget() -> None:
            process.trace = None
            timeline.unwatch(len(process.output))
            self.live.pop(process.pid, None)

        trace = process.trace = Trace(
            began=timeline.began,
            asked_at=now,
            count_pages=lambda: _count_pages(process),
            on_forgotten=forget,
            # What is lost is in front of the first event: as many as that, or at least one.
            next_sequence=since + 1 if since else timeline.num_dropped + 1,
        )
        is_live = process.state is not ProcState.ZOMBIE
        told = () if since and is_live else sorted(timeline.entries, key=lambda entry: entry.at)
        for entry in told:
            trace.record(entry)
        if is_live:
            trace.look(now)
            timeline.watch(trace, len(process.output))
            self.live[process.pid] = process
        return trace

    def on_exit(self, process: Process) -> None:
        """A process has become a zombie, and its last event is written."""
        if self.live.pop(process.pid, None) is not None:
            self._ended[process.pid] = process
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)


def _count_pages(process: Process) -> tuple[int, int]:
    if process.space is None:
        return 0, 0
    table = process.space.page_table
    return len(table), table.tokens_per_page
