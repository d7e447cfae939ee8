"""The run queue of one device: who waits, who runs, who only holds memory."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

import attrs

from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Pid, Process
from llmos.sched.policy import Candidate, View


def queue_key(process: Process) -> tuple[int, int]:
    """Order of the queues: nice level, then arrival."""
    return (process.nice, process.arrival)


@attrs.define(eq=False)
class RunQueue:
    """The processes of one device, in queue order. State changes go through `add`, `take` and `re_sort`."""

    frames_needed: Callable[[Process], int]
    members: dict[Pid, Process] = attrs.field(factory=dict)  # everyone who has not exited
    waiting: list[Process] = attrs.field(factory=list)  # READY
    running: list[Process] = attrs.field(factory=list)  # RUNNING

    def _list_of(self, process: Process) -> list[Process] | None:
        if process.state is ProcState.READY:
            return self.waiting
        if process.state is ProcState.RUNNING:
            return self.running
        return None

    def add(self, process: Process) -> None:
        """Enter a process in the list of its state; call after the state was set. Mutates the queue."""
        self.members[process.pid] = process
        queue = self._list_of(process)
        if queue is not None:
            bisect.insort(queue, process, key=queue_key)

    def take(self, process: Process) -> None:
        """Take a process out of the list of its state; call before the state changes. Mutates the queue."""
        queue = self._list_of(process)
        if queue is not None:
            place = bisect.bisect_left(queue, queue_key(process), key=queue_key)
            assert queue[place] is process
            del queue[place]

    def forget(self, process: Process) -> None:
        """Take a process out for good. Mutates the queue."""
        self.take(process)
        self.members.pop(process.pid, None)

    def renice(self, process: Process, nice: int) -> None:
        """Set the nice level and keep the order. Mutates both."""
        self.take(process)
        process.nice = nice
        self.add(process)

    def _candidate(self, process: Process) -> Candidate:
        return Candidate(
            pid=process.pid,
            nice=process.nice,
            arrival=process.arrival,
            is_running=process.state is ProcState.RUNNING,
            frames_needed=self.frames_needed(process),
        )

    def waiting_candidates(self) -> Iterator[Candidate]:
        """The waiting ones in queue order, made as they are asked for: a policy that stops early is cheap."""
        return (self._candidate(process) for process in self.waiting)

    def holding_candidates(self, excluding: set[Pid]) -> Iterator[Candidate]:
        """Those that hold memory, in no order, without the given ones; lazy too."""
        return (
            self._candidate(process)
            for process in self.members.values()
            if process.space is not None and process.pid not in excluding
        )

    def view(self, num_free_frames: int, max_running: int, excluding: set[Pid] | None = None) -> View:
        """Make the policy's view of this moment."""
        return View(
            waiting=self.waiting_candidates(),
            holding=self.holding_candidates(excluding or set()),
            num_free_frames=num_free_frames,
            num_running=len(self.running),
            max_running=max_running,
        )
