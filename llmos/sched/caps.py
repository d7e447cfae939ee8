"""Caps on what a tenant has of a device at once: where one is reached, its own processes wait or give way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import attrs

from llmos.device import KVFormat
from llmos.proc.lifecycle import WAITING, ProcState, Swap
from llmos.proc.pcb import Process
from llmos.sched.accounts import Account, Accounts
from llmos.sched.policy import Order


@attrs.define(eq=False)
class _Room:
    """What is left of one tenant's caps while its candidates are looked at."""

    num_running: int
    num_pages: int
    is_full: bool = False


@attrs.define(eq=False)
class Caps:
    """Holds the tenants of one device to their caps.

    A page that processes of a tenant share counts once, and pages that are only cached, or mapped ahead of
    need, are as good as free. A process that runs counts with the pages for what it has and the token that it
    samples next, so that memory stays within the cap whatever the device does. One process alone may always
    run: that it fits was checked when it was made.

    Args:
        accounts: with the caps.
        kv: tells how large pages are; asked for only when there is a device.
        frames_needed: frames that a process needs to run, beyond what it holds.
    """

    accounts: Accounts
    kv: Callable[[], KVFormat]
    frames_needed: Callable[[Process], int]

    def pass_over(
        self, waiting: Iterable[Process], members: Collection[Process], *, of_one_tenant: bool = False
    ) -> Iterable[Process]:
        """Those that wait, without the ones that a cap of their own tenant holds back. Lazy.

        Nobody overtakes inside a tenant: after the first that does not fit, none of it does.

        Args:
            waiting: in the policy's order.
            members: all processes of the device.
            of_one_tenant: those that wait all are, so the first that does not fit is the last looked at.
        """
        if not self.accounts.has_caps:
            return waiting
        return self._pass_over(waiting, members, of_one_tenant)

    def _pass_over(
        self, waiting: Iterable[Process], members: Collection[Process], of_one_tenant: bool
    ) -> Iterator[Process]:
        rooms: dict[str, _Room] = {}
        for process in waiting:
            account = self.accounts.of(process.tenant)
            if account.max_running is None and account.max_resident_bytes is None:
                yield process
                continue
            if (room := rooms.get(process.tenant)) is None:
                room = rooms[process.tenant] = self._measure(account, members)
            if not room.is_full:
                room.is_full = not self._fits(process, account, room)
                self.accounts.set_held_back(account, room.is_full)
                if not room.is_full:
                    room.num_running += 1
                    room.num_pages += self._num_new_pages(process)
                    yield process
            if room.is_full and of_one_tenant:
                return

    def _measure(self, account: Account, members: Collection[Process]) -> _Room:
        mine = [process for process in members if process.tenant == account.tenant]
        num_running = sum(map(has_place, mine))
        num_pages = self._count_pages(mine) if account.max_resident_bytes is not None else 0
        return _Room(num_running, num_pages)

    def _fits(self, process: Process, account: Account, room: _Room) -> bool:
        if account.max_running is not None and room.num_running >= account.max_running:
            return False
        if account.max_resident_bytes is None or not room.num_pages:
            return True
        return room.num_pages + self._num_new_pages(process) <= self._max_pages(account)

    def choose_victim(
        self, members: Collection[Process], place: Callable[[Process], Order]
    ) -> Process | None:
        """Whose memory is to be given up next so that every tenant is within its cap; None: nobody's.

        First memory that does not run, of a tenant that is over its cap or whose next process waits for it;
        then the last of those that run, of one that is over.

        Args:
            members: all processes of the device.
            place: where a process stands in the policy's order, to compare within a tenant.
        """
        by_tenant: dict[str, list[Process]] = {}
        for process in members:
            by_tenant.setdefault(process.tenant, []).append(process)
        for tenant, mine in by_tenant.items():
            account = self.accounts.of(tenant)
            if account.max_resident_bytes is None:
                continue
            if (victim := self._choose_among(mine, account, place)) is not None:
                return victim
        return None

    def _choose_among(
        self, mine: list[Process], account: Account, place: Callable[[Process], Order]
    ) -> Process | None:
        running = [process for process in mine if has_place(process)]
        idle = [p for p in mine if p.space is not None and not p.num_arriving and not has_place(p)]
        spare = self._max_pages(account) - self._count_pages(mine)
        if spare < 0:
            if not idle and len(running) > 1:
                idle = [process for process in running if not process.num_arriving]
            return max(idle, key=place, default=None)
        head = min((process for process in mine if process.state in WAITING), key=place, default=None)
        if head is None or (account.max_running is not None and len(running) >= account.max_running):
            return None
        others = [process for process in idle if process is not head]
        return max(others, key=place, default=None) if spare < self._num_new_pages(head) else None

    # --- pages -------------------------------------------------------------------------------------------

    def _max_pages(self, account: Account) -> int:
        assert account.max_resident_bytes is not None
        return account.max_resident_bytes // self.kv().page_bytes

    def _count_pages(self, processes: Iterable[Process]) -> int:
        """Pages that hold what some processes have, and what those that run are about to have."""
        held: set[int] = set()
        num_to_come = 0
        for process in processes:
            if process.space is not None:
                held.update(frames[0] for frames in process.space.page_table.entries)
                if has_place(process):
                    num_to_come += self._num_new_pages(process)
        return len(held) + num_to_come

    def _num_new_pages(self, process: Process) -> int:
        return self.frames_needed(process) // self.kv().frames_per_page


def has_place(process: Process) -> bool:
    """Does it take part in steps, or will as soon as its memory has come back?"""
    return process.state is ProcState.RUNNING or isinstance(process.blocked_on, Swap)
