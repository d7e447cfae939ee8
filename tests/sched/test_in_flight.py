"""Steps in flight: the last one that may still touch a page, one case at a time, and whose answer is due."""

from __future__ import annotations

import pytest

from llmos.cost import StepWork
from llmos.device import Asid, CopyPage, Pfn, Row, StepDone
from llmos.mm.address_space import AddressSpace
from llmos.mm.page_table import PageTable
from llmos.proc.pcb import Pid, Process
from llmos.sched.in_flight import StepsInFlight
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


def issue_row(in_flight: StepsInFlight, process: Process, start: int = 4) -> int:
    """Issue a step with one row that writes from `start` to the end of the second page; returns its id."""
    row = Row(Asid(0), start, (1,) * (8 - start), False)
    return in_flight.issue((), [row], [(process, process.epoch, 8, False)], StepWork()).id


@pytest.mark.parametrize(
    ("page", "start", "is_used"), [(0, 4, False), (1, 4, True), (0, 3, True), (1, 7, True)]
)
async def test_a_page_that_a_row_writes(page: int, start: int, is_used: bool) -> None:
    """From the page of its first position to that of its last; pages before it are only read."""
    in_flight = StepsInFlight(last_id=2)
    step_id = issue_row(in_flight, make_process(), start)
    assert in_flight.last_use([(Pfn(page),)], SIZE) == (step_id if is_used else 0)


async def test_a_row_of_a_life_that_is_over() -> None:
    """The process has memory again, and another: what the step writes is not known, so it may be any page."""
    process, in_flight = make_process(), StepsInFlight(last_id=2)
    step_id = issue_row(in_flight, process)
    assert in_flight.last_use([ELSEWHERE], SIZE) == 0
    process.epoch += 1
    assert in_flight.last_use([ELSEWHERE], SIZE) == step_id


async def test_a_row_of_one_that_has_no_memory() -> None:
    """Given up in this very epoch: the same."""
    process, in_flight = make_process(), StepsInFlight(last_id=2)
    step_id = issue_row(in_flight, process)
    process.space = None
    assert in_flight.last_use([ELSEWHERE], SIZE) == step_id


async def test_a_step_that_copies_pages() -> None:
    """Counts as one that uses all of them."""
    in_flight = StepsInFlight(last_id=4)
    step = in_flight.issue_edits((CopyPage((Pfn(2),), (Pfn(3),)),))
    assert in_flight.last_use([ELSEWHERE], SIZE) == step.id == 5


async def test_the_last_of_several() -> None:
    """Of two that use the page it is the later one; the one behind them does not use it."""
    process, in_flight = make_process(), StepsInFlight(last_id=2)
    assert in_flight.last_use([(Pfn(1),)], SIZE) == 0
    _, later, _ = (issue_row(in_flight, process, start) for start in (4, 4, 8))
    assert in_flight.last_use([(Pfn(1),)], SIZE) == later


async def test_steps_are_answered_in_their_order() -> None:
    """Only the oldest step can be, and only row by row; what comes out of turn changes nothing."""
    in_flight, process = StepsInFlight(), make_process()
    first, second = issue_row(in_flight, process), issue_row(in_flight, process)
    for result in (StepDone(second, (7,), 0.1), StepDone(first, (), 0.1), StepDone(first, (7, 8), 0.1)):
        assert in_flight.take_answered(result) is None
    assert len(in_flight) == 2
    for step_id in (first, second):
        answered = in_flight.take_answered(StepDone(step_id, (7,), 0.1))
        assert answered is not None
        assert answered.step.id == step_id
    assert in_flight.take_answered(StepDone(second, (7,), 0.1)) is None
