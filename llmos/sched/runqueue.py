"""The run queue of one device: who waits, who runs, who only holds memory."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

import attrs

from llmos.proc.lifecycle import WAITING, ProcState
from llmos.proc.pcb import Pid, Process
from llmos.sched.accounts import Accounts, weigh
from llmos.sched.caps import Caps
from llmos.sched.policy import Candidate, Order, ResidencyPolicy, View
from llmos.sched.turns import Turns
from llmos.sched.users import Users

L = TypeVar("L")  # how the processes of a tenant are kept


@attrs.define(eq=False)
class RunQueue:
    """The processes of one device, in the policy's order. States change by `add`, `change` and `take` alone.

    Args:
        policy: whose order it is.
        accounts: told who waits and who runs.
        frames_needed: frames that a process needs to run, beyond what it holds.
        frames_held: frames that a process holds.
        caps: pass over those that wait for a cap of their own tenant.
    """

    policy: ResidencyPolicy
    accounts: Accounts
    frames_needed: Callable[[Process], int]
    frames_held: Callable[[Process], int]
    caps: Caps
    members: dict[Pid, Process] = attrs.field(factory=dict)  # everyone who has not exited
    waiting: list[Process] = attrs.field(factory=list)  # READY or SWAPPED
    running: list[Process] = attrs.field(factory=list)  # RUNNING
    # BLOCKED(Swap): they have a place, and wait for memory.
    arriving: dict[Pid, Process] = attrs.field(factory=dict)
    users: Users = attrs.field(init=False, factory=lambda: Users(service_of))
    _queues: dict[str, Turns] = attrs.field(init=False, factory=dict)  # those that wait, by tenant
    _crews: dict[str, list[Process]] = attrs.field(init=False, factory=dict)  # those that run, by tenant

    @property
    def num_places_taken(self) -> int:
        """Processes that run, or will as soon as their memory is there."""
        return len(self.running) + len(self.arriving)

    def order(self, process: Process) -> Order:
        """Where a process stands."""
        return self.policy.order(process.nice, process.arrival, process.turn_started_at, process.deadline_at)

    def add(self, process: Process) -> None:
        """Enter a process in the lists of its state; call after the state was set. Mutates the queue."""
        if process.pid not in self.members:
            self.members[process.pid] = process
            self.users.enter(process)
        self.users.settle(process, is_running=process.state is ProcState.RUNNING)
        if process.state is ProcState.RUNNING:
            bisect.insort(self.running, process, key=self.order)
            bisect.insort(self._crews.setdefault(process.tenant, []), process, key=self.order)
            self.accounts.start_running(process.tenant)
        elif process.state is ProcState.BLOCKED and process.num_arriving:
            self.arriving[process.pid] = process
            self.accounts.start_running(process.tenant)
        elif process.state in WAITING:
            self._line_up(process)
            self.accounts.start_waiting(process.tenant)

    def take(self, process: Process) -> None:
        """Take a process out of the lists of its state; call before the state changes. Mutates the queue."""
        if self.arriving.pop(process.pid, None) is not None:
            self.accounts.stop_running(process.tenant)
        if process.pid in self.members:
            self.users.settle(process, is_running=False)
        if process.state is ProcState.RUNNING:
            self._remove(self.running, process)
            self._remove(crew := self._crews[process.tenant], process)
            if not crew:
                del self._crews[process.tenant]
            self.accounts.stop_running(process.tenant)
        elif process.state in WAITING:
            self._step_out(process)
            self.accounts.stop_waiting(process.tenant)

    def change(self, process: Process, change: Callable[[], None]) -> None:
        """Make a change to a process that may put it elsewhere in its list, or in another one. Mutates both.

        Who waits before and after has waited all the while: its tenant is not lifted, as one that comes is.
        """
        has_waited = process.state in WAITING
        if has_waited:
            self._step_out(process)
        else:
            self.take(process)
        change()
        if has_waited and process.state in WAITING:
            self._line_up(process)
            return
        if has_waited:
            self.accounts.stop_waiting(process.tenant)
        self.add(process)

    def _line_up(self, process: Process) -> None:
        bisect.insort(self.waiting, process, key=self.order)
        self._queue_of(process.tenant).add(process)

    def _step_out(self, process: Process) -> None:
        self._remove(self.waiting, process)
        (queue := self._queues[process.tenant]).remove(process)
        if not queue:
            del self._queues[process.tenant]

    def _remove(self, queue: list[Process], process: Process) -> None:
        place = bisect.bisect_left(queue, self.order(process), key=self.order)
        assert queue[place] is process
        del queue[place]

    def _queue_of(self, tenant: str) -> Turns:
        if (queue := self._queues.get(tenant)) is None:
            queue = self._queues[tenant] = Turns(tenant, self.users, self.order)
        return queue

    def forget(self, process: Process) -> None:
        """Take a process out for good. Mutates the queue."""
        self.take(process)
        if self.members.pop(process.pid, None) is not None:
            self.users.leave(process)

    def renice(self, process: Process, nice: int) -> None:
        """Set the nice level and keep the order. Mutates both."""
        self.change(process, lambda: setattr(process, "nice", nice))

    def _candidates(self, processes: Iterable[Process]) -> Iterator[Candidate]:
        """Made as they are asked for: a policy that stops early is cheap."""
        return (
            Candidate(
                pid=process.pid,
                tenant=process.tenant,
                order=self.order(process),
                is_running=process.state is ProcState.RUNNING,
                frames_needed=self.frames_needed(process),
                frames_held=self.frames_held(process),
                new_tokens=process.num_uncharged,
                service=service_of(process) - process.service_at_admission,
            )
            for process in processes
        )

    def _admissible(self, queue: Iterable[Process]) -> Iterable[Process]:
        return self.caps.pass_over(queue, self.members.values())

    def _in_turns(self, queue: Turns) -> Iterator[Candidate]:
        return self._candidates(self.caps.pass_over(queue, self.members.values(), of_one_tenant=True))

    def _ranked(self, rank: Callable[[int], Order]) -> Iterator[Candidate]:
        return self._candidates(sorted(self._admissible(self.waiting), key=lambda process: rank(process.pid)))

    def _num_promised(self, tenant: str) -> int:
        return sum(process.num_uncharged for process in self._crews.get(tenant, ()))

    def view(self, num_free_frames: int, max_running: int, excluding: set[Pid] | None = None) -> View:
        """Make the policy's view of this moment, without those excluded among the ones that hold memory."""
        holding = (
            process
            for process in self.members.values()
            if process.space is not None
            and not process.num_arriving  # it gains nothing by giving that up
            and (excluding is None or process.pid not in excluding)
        )
        return View(
            waiting=self._candidates(self._admissible(self.waiting)),
            ranked=self._ranked,
            queues=_ByTenant(self._queues, self._in_turns),
            running=_ByTenant(self._crews, lambda crew: self._candidates(reversed(crew))),
            num_promised=self._num_promised,
            holding=self._candidates(holding),
            num_free_frames=num_free_frames,
            num_running=self.num_places_taken,
            max_running=max_running,
        )


def service_of(process: Process) -> float:
    """Weighted tokens that a process has been served in its life."""
    return weigh(process.num_prompt_tokens - process.num_uncharged, len(process.output))


class _ByTenant(Mapping[str, Iterable[Candidate]], Generic[L]):
    """Candidates by tenant, made when one is looked at."""

    def __init__(self, lists: dict[str, L], make: Callable[[L], Iterator[Candidate]]) -> None:
        self._lists = lists
        self._make = make

    def __getitem__(self, tenant: str) -> Iterable[Candidate]:
        return self._make(self._lists[tenant])

    def __iter__(self) -> Iterator[str]:
        return iter(self._lists)

    def __len__(self) -> int:
        return len(self._lists)
