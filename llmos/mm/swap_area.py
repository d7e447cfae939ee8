"""A lower tier of memory as the kernel sees it: slots of one frame each, handed out in runs."""

from __future__ import annotations

import bisect

from attrs import define, field

from llmos.errors import KernelPanic, OutOfSlots


@define(eq=False)
class SwapArea:
    """Slots 0 … num_slots - 1 of one tier, free or not.

    What is copied together should lie together, so that a copy is one long run at both ends: a request takes
    the run right behind the slots it continues where that is free, else the smallest free run that holds it,
    else the fewest, largest ones. Runs of any length split and merge with their neighbours. O(log runs) for
    each run touched.

    Args:
        num_slots: of the tier; 0 where there is none.

    Source: Shen et al. 2024, FastSwitch (dynamic block groups), with runs that need no initial size because
    what is swapped out has stopped growing.
    """

    num_slots: int
    _starts: list[int] = field(init=False, factory=list)  # of the free runs, ascending
    _lengths: dict[int, int] = field(init=False, factory=dict)  # of the free run at a start
    _by_length: list[tuple[int, int]] = field(init=False, factory=list)  # the same runs: length, start
    _num_free: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        if self.num_slots > 0:
            self._add_run(0, self.num_slots)
        self._num_free = self.num_slots

    @property
    def num_free(self) -> int:
        """Slots that nobody has."""
        return self._num_free

    @property
    def num_runs(self) -> int:
        """Runs that the free slots are in."""
        return len(self._starts)

    def allocate(self, count: int, behind: int | None = None) -> list[int]:
        """Take `count` slots, in as few runs as there can be. All or nothing.

        Args:
            count: at least 1.
            behind: the slot that they continue, if any.

        Raises:
            OutOfSlots: too few are free.
        """
        if count > self._num_free:
            raise OutOfSlots(count, self._num_free)
        slots: list[int] = []
        if behind is not None and self._lengths.get(behind + 1, 0) >= count:
            return self._take(behind + 1, count)
        while len(slots) < count:
            wanted = count - len(slots)
            place = min(bisect.bisect_left(self._by_length, (wanted, 0)), len(self._by_length) - 1)
            length, start = self._by_length[place]
            slots += self._take(start, min(wanted, length))
        return slots

    def free(self, slots: list[int] | tuple[int, ...]) -> None:
        """Give slots back. Raises KernelPanic when one is free already."""
        for slot in slots:
            self._free_one(slot)
        self._num_free += len(slots)

    def check_integrity(self) -> None:
        """Raise KernelPanic where the two orders of the free runs disagree, or a run could be longer."""
        if sorted(self._lengths) != self._starts or sorted(self._by_length) != self._by_length:
            raise KernelPanic("free runs of a swap area are out of order")
        if {start: length for length, start in self._by_length} != self._lengths:
            raise KernelPanic("free runs of a swap area are known by two lengths")
        if sum(self._lengths.values()) != self._num_free:
            raise KernelPanic(f"{self._num_free} slots are free, {sum(self._lengths.values())} are in runs")
        end = -1
        for start in self._starts:
            if start <= end or start + self._lengths[start] > self.num_slots:
                raise KernelPanic(f"the free run at slot {start} should have been merged, or does not exist")
            end = start + self._lengths[start]

    # --- inside ------------------------------------------------------------------------------------------

    def _take(self, start: int, count: int) -> list[int]:
        """Take the first `count` slots of the free run at `start`."""
        length = self._lengths[start]
        self._remove_run(start)
        if length > count:
            self._add_run(start + count, length - count)
        self._num_free -= count
        return list(range(start, start + count))

    def _free_one(self, slot: int) -> None:
        """Merge one slot with the free runs beside it."""
        place = bisect.bisect_right(self._starts, slot)
        start, end = slot, slot + 1
        if place and (before := self._starts[place - 1]) + self._lengths[before] >= slot:
            if before + self._lengths[before] > slot:
                raise KernelPanic(f"slot {slot} of a swap area is freed twice")
            start = before
            self._remove_run(before)
        if end in self._lengths:
            end += self._lengths[end]
            self._remove_run(slot + 1)
        if not 0 <= slot < self.num_slots:
            raise KernelPanic(f"slot {slot} is outside the {self.num_slots} of a swap area")
        self._add_run(start, end - start)

    def _add_run(self, start: int, length: int) -> None:
        bisect.insort(self._starts, start)
        self._lengths[start] = length
        bisect.insort(self._by_length, (length, start))

    def _remove_run(self, start: int) -> None:
        length = self._lengths.pop(start)
        del self._starts[bisect.bisect_left(self._starts, start)]
        del self._by_length[bisect.bisect_left(self._by_length, (length, start))]
