"""Writes the timelines of one device's processes as the scheduler moves them."""

from __future__ import annotations

import attrs
import trio

from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Process
from llmos.proc.timeline import Preempted
from llmos.sched.accounts import Accounts
from llmos.sched.switch import SwitchedOut


@attrs.define(eq=False)
class Recorder:
    """Knows what a timeline must be told, so that those who move processes say it in one line.

    Args:
        accounts: who runs at the moment.
        is_fair: memory is taken from the tenant that was served most.
    """

    accounts: Accounts
    is_fair: bool
    _short_seconds: float = attrs.field(init=False, default=0.0)
    _short_since: float | None = attrs.field(init=False, default=None)

    # --- want of memory: whoever waits looks at the sum twice, and takes the difference ---

    def note_shortage(self, is_short: bool) -> None:
        """From now on somebody waits because memory is short, or nobody does."""
        now = trio.current_time()
        self._short_seconds = self.short_seconds(now)
        self._short_since = now if is_short else None

    def short_seconds(self, now: float) -> float:
        """Seconds in which memory was what the head of the queue waited for."""
        return self._short_seconds + (now - self._short_since if self._short_since is not None else 0.0)

    # --- what happens to a process -----------------------------------------------------------------------

    def note_state(self, process: Process, num_waiting: int = 0) -> None:
        """A process has moved to another state. `num_waiting`: in the queue, with this one."""
        now = trio.current_time()
        timeline = process.timeline
        short_seconds = self.short_seconds(now)
        timeline.settle(now, len(process.output), short_seconds)
        match process.state:
            case ProcState.READY | ProcState.SWAPPED:
                others = max(0, num_waiting - 1)
                timeline.queued(
                    now,
                    others,
                    self.accounts.busiest(),
                    short_seconds,
                    is_swapped=process.state is ProcState.SWAPPED,
                )
            case ProcState.RUNNING:
                timeline.admitted(now, process.num_computed)
            case ProcState.BLOCKED:
                timeline.blocked(now, str(process.blocked_on))
            case ProcState.STOPPED:
                timeline.stopped(now)
            case ProcState.ZOMBIE:
                assert process.status is not None
                timeline.ended(now, process.status.reason)

    def note_preemption(
        self, process: Process, by: Process | None, num_computed: int, out: SwitchedOut
    ) -> None:
        """A process has lost its memory.

        Args:
            process: in the state that it was in then.
            by: for whom; None: it wanted more itself, and was last in line.
            num_computed: that it had.
            out: where to.
        """
        how: Preempted = "swap" if out.num_kept_tokens else "recompute"
        num_lost = max(0, num_computed - out.num_kept_tokens)
        # Memory of those that do not run goes first, whose ever it is.
        is_fair_share = process.state is ProcState.RUNNING and self._is_fair_share(process, by)
        process.timeline.preempted(trio.current_time(), by, how, num_lost, is_fair_share=is_fair_share)
        self.note_swap(process, out)

    def note_set_aside(self, process: Process, by: Process) -> None:
        """A running process has lost its place to another one, and not its memory."""
        is_fair_share = self._is_fair_share(process, by)
        process.timeline.preempted(trio.current_time(), by, "set aside", is_fair_share=is_fair_share)

    def _is_fair_share(self, process: Process, by: Process | None) -> bool:
        return self.is_fair and by is not None and by.tenant != process.tenant

    def note_swap(self, process: Process, out: SwitchedOut) -> None:
        """What a process had has gone to a lower tier, some of it perhaps while it ran."""
        num_bytes, process.num_bytes_cleaned = out.num_bytes + process.num_bytes_cleaned, 0
        if num_bytes and out.num_kept_tokens:
            process.timeline.swapped_out(trio.current_time(), num_bytes, out.tier or "host")
