"""Slots of a lower tier: never given twice, in few runs, against a set of numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmos.errors import KernelPanic, OutOfSlots
from llmos.mm.swap_area import SwapArea

NUM_SLOTS = 40


class AreaMachine(RuleBasedStateMachine):
    """The model is the set of free slots."""

    def __init__(self) -> None:
        super().__init__()
        self.area = SwapArea(NUM_SLOTS)
        self.free = set(range(NUM_SLOTS))
        self.taken: list[list[int]] = []

    @rule(count=st.integers(1, 12), behind=st.one_of(st.none(), st.integers(0, NUM_SLOTS - 1)))
    def allocate(self, count: int, behind: int | None) -> None:
        if count > len(self.free):
            with pytest.raises(OutOfSlots):
                self.area.allocate(count, behind)
            return
        longest = max(len(run) for run in runs(self.free))
        wanted = set() if behind is None else set(range(behind + 1, behind + 1 + count))
        slots = self.area.allocate(count, behind)
        assert len(set(slots)) == count
        assert set(slots) <= self.free
        if wanted and wanted <= self.free and behind not in self.free:
            assert set(slots) == wanted
        if longest >= count:
            assert len(runs(set(slots))) == 1
        self.free -= set(slots)
        self.taken.append(slots)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        slots = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        cut = data.draw(st.integers(0, len(slots)))
        self.area.free(slots[:cut])
        self.free |= set(slots[:cut])
        if slots[cut:]:
            self.taken.append(slots[cut:])
        if cut:
            with pytest.raises(KernelPanic):
                self.area.free(slots[:1])

    @invariant()
    def is_what_the_model_says(self) -> None:
        self.area.check_integrity()
        assert self.area.num_free == len(self.free)
        assert self.area.num_runs == len(runs(self.free))


AreaMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestArea = AreaMachine.TestCase


def runs(slots: set[int]) -> list[list[int]]:
    """Group adjacent numbers."""
    grouped: list[list[int]] = []
    for slot in sorted(slots):
        if grouped and grouped[-1][-1] + 1 == slot:
            grouped[-1].append(slot)
        else:
            grouped.append([slot])
    return grouped


def test_runs_stay_long() -> None:
    """After many random swaps at 30 % free, what is given out has a mean run of 8 slots or more."""
    chance = random.Random(1)
    area = SwapArea(4000)
    held: list[list[int]] = []
    num_slots = num_runs = 0
    for _ in range(4000):
        count = 2 * chance.randint(4, 60)
        while area.num_free - count < 0.3 * area.num_slots:
            area.free(held.pop(chance.randrange(len(held))))
        held.append(area.allocate(count))
        num_slots += count
        num_runs += len(runs(set(held[-1])))
    assert num_slots / num_runs >= 8


def test_an_area_of_nothing() -> None:
    """A tier that is not there has no room."""
    area = SwapArea(0)
    with pytest.raises(OutOfSlots):
        area.allocate(1)
    area.check_integrity()
