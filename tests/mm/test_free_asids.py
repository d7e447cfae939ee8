"""FreeAsids against a list that is searched."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmos.device import Asid, Pfn
from llmos.errors import OutOfSpaces
from llmos.mm.frame import FramePool
from llmos.mm.free_asids import FreeAsids
from llmos.mm.page_table import PageFrames

MAX_SPACES, NUM_FRAMES = 5, 10


def page(first: int) -> PageFrames:
    return (Pfn(first), Pfn(first + NUM_FRAMES))


class FreeAsidsMachine(RuleBasedStateMachine):
    """Whatever is given out was free, comes with what was left there, and serves if something there does."""

    def __init__(self) -> None:
        super().__init__()
        self.free = FreeAsids(MAX_SPACES)
        self.pool = FramePool(2 * NUM_FRAMES)
        self.left: dict[Asid, tuple[list[PageFrames], int, tuple[PageFrames, ...]]] = {
            Asid(asid): ([], 0, ()) for asid in range(MAX_SPACES)
        }

    @rule(
        shared=st.lists(st.integers(0, NUM_FRAMES - 1), unique=True, max_size=3).map(
            lambda pages: [page(pfn) for pfn in pages]
        ),
        num_more=st.integers(1, 3),
    )
    def take(self, shared: list[PageFrames], num_more: int) -> None:
        """The best of what is free, by looking at all of it."""
        num_pages = len(shared) + num_more
        if not self.left:
            with pytest.raises(OutOfSpaces):
                self.free.take(shared, num_pages, self.pool)
            return
        given = self.free.take(shared, num_pages, self.pool)
        left, self.left = self.left, dict(self.left)
        mappings, num_own, _ = self.left.pop(given.asid)
        assert (given.mappings, given.num_own) == (mappings, num_own)
        for vpn in (len(shared) - 1, 0):
            found = {
                asid: len(mappings)
                for asid, (mappings, _, landmarks) in left.items()
                if shared and shared[vpn] in landmarks and mappings[vpn : vpn + 1] == [shared[vpn]]
            }
            if found:
                enough = {asid: size for asid, size in found.items() if size >= num_pages}
                assert given.asid in (enough or found)
                best = min(enough.values()) if enough else max(found.values())
                assert found[given.asid] == best
                return
        # every frame is free in this test
        sizes = {asid: num_own for asid, (_, num_own, _) in left.items() if num_own}
        if sizes:
            enough = {asid: size for asid, size in sizes.items() if size >= num_pages}
            assert sizes[given.asid] == (min(enough.values()) if enough else max(sizes.values()))

    @precondition(lambda self: len(self.left) < MAX_SPACES)
    @rule(
        pages=st.lists(st.integers(0, NUM_FRAMES - 1), unique=True, max_size=4),
        num_cached=st.integers(0, 4),
        data=st.data(),
    )
    def give_back(self, pages: list[int], num_cached: int, data: st.DataObject) -> None:
        """A space ends; some of its first pages went to the index, or the frames of all are free."""
        asid = data.draw(st.sampled_from(sorted(set(range(MAX_SPACES)) - set(self.left))).map(Asid))
        mappings = [page(pfn) for pfn in pages]
        cached = mappings[:num_cached]
        landmarks = tuple(dict.fromkeys((cached[0], cached[-1]))) if cached else ()
        num_own = 0 if cached else len(mappings)
        self.free.give_back(asid, mappings, num_own, landmarks)
        self.left[asid] = (mappings, num_own, landmarks)

    @invariant()
    def nobody_is_lost(self) -> None:
        """The same asids are free on both sides, and each is known by its landmarks."""
        assert sorted(self.free) == sorted(self.left)
        assert len(self.free) == len(self.left)
        assert sorted(asid for _, _, asid in self.free._by_size) == sorted(self.left)
        known = {(mark, asid) for mark, asids in self.free._by_landmark.items() for asid in asids}
        assert known == {(mark, asid) for asid, (_, _, marks) in self.left.items() for mark in marks}


TestFreeAsids = FreeAsidsMachine.TestCase
TestFreeAsids.settings = settings(max_examples=100, stateful_step_count=30)


def test_leftovers_whose_frames_are_taken_do_not_count() -> None:
    """Then the asid goes that has been free the longest."""
    pool = FramePool(2 * NUM_FRAMES)
    free = FreeAsids(2)
    assert free.take((), 1, pool).asid == 0
    free.give_back(Asid(0), [page(3)], 1, ())
    assert pool.try_take(page(3))
    assert free.take((), 1, pool).asid == 1


def test_without_best_fit_whoever_was_free_longest_goes() -> None:
    """Whatever is mapped there: spaces take turns."""
    free, pool = FreeAsids(3, best_fit=False), FramePool(2 * NUM_FRAMES)
    given_out = []
    for _ in range(7):
        asid = free.take([page(0)], 1, pool).asid
        given_out.append(asid)
        free.give_back(asid, [page(0)], 1, (page(0),))
    assert given_out == [0, 1, 2, 0, 1, 2, 0]
