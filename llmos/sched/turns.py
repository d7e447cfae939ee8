"""Turns: those of one tenant who wait, a line for each of its users, least served users first."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Iterator

import attrs

from llmos.proc.pcb import Process
from llmos.sched.accounts import PROMPT_WEIGHT
from llmos.sched.policy import Order
from llmos.sched.users import Users

Key = tuple[float, Order, str]  # what a user was served, where its first process stands, its name


@attrs.define(eq=False)
class _Line:
    """The processes of one user, in the policy's order, and where the line stands among the others."""

    processes: list[Process] = attrs.field(factory=list)
    key: Key = (0.0, (), "")


@attrs.define(eq=False)
class Turns:
    """The lines of one tenant's users.

    A line is put in its place whenever it changes. A key may be too low, by what its user was served since,
    and never too high: a look at the first few corrects the keys that it meets, and reads no others.

    Args:
        tenant: whose they are.
        users: know what each was served.
        order: the policy's, of processes; no two are equal.
    """

    tenant: str
    users: Users
    order: Callable[[Process], Order]
    _lines: dict[str, _Line] = attrs.field(init=False, factory=dict)
    _keys: list[Key] = attrs.field(init=False, factory=list)  # of all lines, sorted

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, process: Process) -> None:
        """Let a process wait. Mutates the lines."""
        line = self._lines.get(process.user)
        if line is None:
            line = self._lines[process.user] = _Line()
        else:
            self._drop_key(line)
        bisect.insort(line.processes, process, key=self.order)
        self._set_key(line, process.user)

    def remove(self, process: Process) -> None:
        """Take out one that waits. Mutates the lines."""
        line = self._lines[process.user]
        self._drop_key(line)
        place = bisect.bisect_left(line.processes, self.order(process), key=self.order)
        assert line.processes[place] is process
        del line.processes[place]
        if line.processes:
            self._set_key(line, process.user)
        else:
            del self._lines[process.user]

    def __iter__(self) -> Iterator[Process]:
        """All of them: those of each user in their order, users as they were served. Lazy.

        Each counts with the prompt that it brings as soon as it is taken, so that equals take turns. They go
        by the order of the first in each line.
        """
        if len(self._lines) == 1:
            (line,) = self._lines.values()
            yield from line.processes
            return
        heap: list[tuple[float, Order, int, str]] = []  # lines that were met, by what they stand at now
        for least, first, user in self._keys:
            while heap and heap[0][:2] <= (least, first):
                yield self._take(heap)
            heapq.heappush(heap, (self.users.served(self.tenant, user), first, 0, user))
        while heap:
            yield self._take(heap)

    def _take(self, heap: list[tuple[float, Order, int, str]]) -> Process:
        served, first, index, user = heap[0]
        processes = self._lines[user].processes
        process = processes[index]
        if index + 1 == len(processes):
            heapq.heappop(heap)
        else:
            served += PROMPT_WEIGHT * max(1, process.num_uncharged)
            heapq.heapreplace(heap, (served, first, index + 1, user))
        return process

    def _set_key(self, line: _Line, user: str) -> None:
        line.key = self.users.settled(self.tenant, user), self.order(line.processes[0]), user
        bisect.insort(self._keys, line.key)

    def _drop_key(self, line: _Line) -> None:
        del self._keys[bisect.bisect_left(self._keys, line.key)]
