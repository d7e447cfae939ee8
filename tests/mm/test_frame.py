"""FramePool against a list of owners."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmos.device import Pfn
from llmos.errors import KernelPanic, OutOfFrames
from llmos.mm.frame import FramePool

NUM_FRAMES = 12


class FramePoolMachine(RuleBasedStateMachine):
    """FramePool agrees with a list that holds each frame once for each of its references."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = FramePool(NUM_FRAMES)
        self.owners: list[Pfn] = []

    @rule(count=st.integers(0, NUM_FRAMES + 1))
    def allocate(self, count: int) -> None:
        """The lowest free frames are given, or none with the numbers that say why."""
        free = sorted(set(range(NUM_FRAMES)) - set(self.owners))
        if count > len(free):
            with pytest.raises(OutOfFrames) as caught:
                self.pool.allocate(count)
            assert (caught.value.needed, caught.value.free) == (count, len(free))
        else:
            assert self.pool.allocate(count) == free[:count]
            self.owners += free[:count]

    @rule(frames=st.lists(st.integers(0, NUM_FRAMES - 1).map(Pfn), unique=True, max_size=4))
    def try_take(self, frames: list[Pfn]) -> None:
        """These very frames are given, unless one of them is in use."""
        is_free = not set(frames) & set(self.owners)
        assert self.pool.try_take(frames) == is_free
        if is_free:
            self.owners += frames

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        """A frame in use gets one more owner."""
        pfn = data.draw(st.sampled_from(self.owners))
        self.pool.acquire(pfn)
        self.owners.append(pfn)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A frame in use loses one owner."""
        pfn = data.draw(st.sampled_from(self.owners))
        self.pool.release(pfn)
        self.owners.remove(pfn)

    @precondition(lambda self: len(set(self.owners)) < NUM_FRAMES)
    @rule(data=st.data())
    def misuse(self, data: st.DataObject) -> None:
        """A free frame can be neither acquired nor released."""
        pfn = data.draw(st.sampled_from(sorted(set(range(NUM_FRAMES)) - set(self.owners))))
        with pytest.raises(KernelPanic):
            self.pool.acquire(pfn)
        with pytest.raises(KernelPanic):
            self.pool.release(pfn)

    @invariant()
    def frames_are_conserved(self) -> None:
        """Free and owned frames add up, and every count is the number of owners."""
        self.pool.check_integrity()
        assert self.pool.statistics().num_free + len(set(self.owners)) == NUM_FRAMES
        for pfn in map(Pfn, range(NUM_FRAMES)):
            assert self.pool.refcount(pfn) == self.owners.count(pfn)


TestFramePool = FramePoolMachine.TestCase
TestFramePool.settings = settings(max_examples=40, stateful_step_count=30)


def test_integrity_check_finds_a_lost_frame() -> None:
    """A frame whose reference vanished without a release is reported."""
    pool = FramePool(4)
    (pfn,) = pool.allocate(1)
    pool.refcounts[pfn] = 0
    with pytest.raises(KernelPanic, match=f"frame {pfn}"):
        pool.check_integrity()


def test_a_pool_has_frames() -> None:
    """A pool without frames is refused."""
    with pytest.raises(ValueError, match="at least 1 frame"):
        FramePool(0)
