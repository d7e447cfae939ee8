"""last_use: the last step in flight that may still touch a page, one case at a time."""

from __future__ import annotations

import pytest

from llmos.cost import StepWork
from llmos.device import Asid, CopyPage, Pfn, Row, Step
from llmos.mm.address_space import AddressSpace
from llmos.mm.page_table import PageTable
from llmos.proc.pcb import Pid, Process
from llmos.sched.in_flight import InFlight, last_use
from syscalls.sampling import Sampling

SIZE = 4  # tokens of a page
ELSEWHERE = (Pfn(9),)  # a page of nobody's


def make_process() -> Process:
    """One with two pages, at frames 0 and 1."""
    table = PageTable(SIZE)
    for vpn in range(2):
        table.map(vpn, (Pfn(vpn),))
    return Process(
        pid=Pid(1), tenant="t", session=None, model="m", device="d", sampling=Sampling(seed=1),
        stop_tokens=frozenset(), spawned_at=0.0, arrival=1, tokens=[1] * 8, turn_start=8, max_tokens=1,
        space=AddressSpace(Asid(0), "t", 8, table),
    )  # fmt: skip


def flight_of(process: Process, step_id: int = 3, start: int = 4) -> InFlight:
    """A step with one row that writes from `start` to the end of the second page."""
    step = Step(step_id, (), (Row(Asid(0), start, (1,) * (8 - start), False),))
    return InFlight(step, 0.0, [(process, process.epoch, 8, False)], StepWork())


@pytest.mark.parametrize(("page", "start", "expected"), [(0, 4, 0), (1, 4, 3), (0, 3, 3), (1, 7, 3)])
def test_a_page_that_a_row_writes(page: int, start: int, expected: int) -> None:
    """From the page of its first position to that of its last; pages before it are only read."""
    assert last_use([flight_of(make_process(), start=start)], [(Pfn(page),)], SIZE) == expected


def test_a_row_of_a_life_that_is_over() -> None:
    """The process has memory again, and another: what the step writes is not known, so it may be any page."""
    process = make_process()
    flight = flight_of(process)
    assert last_use([flight], [ELSEWHERE], SIZE) == 0
    process.epoch += 1
    assert last_use([flight], [ELSEWHERE], SIZE) == 3


def test_a_row_of_one_that_has_no_memory() -> None:
    """Given up in this very epoch: the same."""
    process = make_process()
    flight = flight_of(process)
    process.space = None
    assert last_use([flight], [ELSEWHERE], SIZE) == 3


def test_a_step_that_copies_pages() -> None:
    """Counts as one that uses all of them."""
    step = Step(5, (CopyPage((Pfn(2),), (Pfn(3),)),), ())
    assert last_use([InFlight(step, 0.0, [], StepWork())], [ELSEWHERE], SIZE) == 5


def test_the_last_of_several() -> None:
    """Of two that use the page it is the later one; the one behind them does not use it."""
    process = make_process()
    flights = [flight_of(process, 3), flight_of(process, 4), flight_of(process, 5, start=8)]
    assert last_use(flights, [(Pfn(1),)], SIZE) == 4
    assert last_use([], [(Pfn(1),)], SIZE) == 0
