"""PrefixIndex against a dictionary of prefixes."""

from __future__ import annotations

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmos.errors import KernelPanic
from llmos.mm.frame import FramePool
from llmos.mm.page_table import PageFrames
from llmos.mm.prefix import PrefixIndex

TOKENS_PER_PAGE = 2
FRAMES_PER_PAGE = 2
NUM_FRAMES = 200

Prefix = tuple[str, tuple[int, ...]]  # salt, and the tokens of full pages from position 0 on
salts = st.sampled_from(["alice", "bob"])
prompts = st.lists(st.integers(0, 1), max_size=9)


@define
class Entry:
    """What the model knows of one page."""

    frames: PageFrames
    last_used: int


class PrefixMachine(RuleBasedStateMachine):
    """The index agrees with a dictionary from whole prefixes to pages, searched the slow way."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = FramePool(NUM_FRAMES)
        self.index = PrefixIndex(self.pool, TOKENS_PER_PAGE, FRAMES_PER_PAGE)
        self.model: dict[Prefix, Entry] = {}
        self.held: list[PageFrames] = []  # references of users
        self.clock = 0
        self.num_evicted = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def longest(self, salt: str, tokens: list[int]) -> list[Prefix]:
        """Prefixes of a prompt that are known, shortest first."""
        found = []
        for end in range(TOKENS_PER_PAGE, len(tokens) + 1, TOKENS_PER_PAGE):
            if (salt, tuple(tokens[:end])) not in self.model:
                break
            found.append((salt, tuple(tokens[:end])))
        return found

    def let_go(self, frames: PageFrames) -> None:
        """A user gives a page back, as the VMM does."""
        self.held.remove(frames)
        for pfn in frames:
            self.pool.release(pfn)
        if self.pool.refcount(frames[0]):
            self.index.note_release(frames)
        for entry in self.model.values():
            if entry.frames == frames and frames not in self.held:
                entry.last_used = self.tick()

    def descendants(self, prefix: Prefix) -> list[Prefix]:
        salt, tokens = prefix
        size = len(tokens)
        return [p for p in self.model if p[0] == salt and len(p[1]) > size and p[1][:size] == tokens]

    @rule(salt=salts, tokens=prompts, keep=st.booleans())
    def insert(self, salt: str, tokens: list[int], keep: bool) -> None:
        """Pages that are new are taken, pages that are known are not."""
        num_pages = len(tokens) // TOKENS_PER_PAGE
        pages = [tuple(self.pool.allocate(FRAMES_PER_PAGE)) for _ in range(num_pages)]
        self.held += pages
        known = len(self.longest(salt, tokens))
        assert self.index.insert(salt, tokens, pages) == num_pages - known
        now = self.tick()
        for number, frames in enumerate(pages):
            prefix = (salt, tuple(tokens[: (number + 1) * TOKENS_PER_PAGE]))
            self.model.setdefault(prefix, Entry(frames, now)).last_used = now
        if not keep:
            for frames in pages:
                self.let_go(frames)

    @rule(salt=salts, tokens=prompts, cut=st.integers(-1, 9), data=st.data())
    def match(self, salt: str, tokens: list[int], cut: int, data: st.DataObject) -> None:
        """The longest run of known pages within the limit is found, and held for the caller."""
        limit = len(tokens) - 1 if cut < 0 else cut
        expected = self.longest(salt, tokens[: max(0, limit)])
        found = self.index.match(salt, tokens, limit)
        assert found == [self.model[prefix].frames for prefix in expected]
        assert len(found) * TOKENS_PER_PAGE <= max(0, limit)
        self.held += found
        if data.draw(st.booleans()):
            for frames in found:
                self.let_go(frames)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A user lets go of one page."""
        self.let_go(data.draw(st.sampled_from(self.held)))

    @rule(num_frames=st.integers(0, 9))
    def evict(self, num_frames: int) -> None:
        """The least recently used leaves that nobody maps go first; all that is idle can go."""
        freed = 0
        while freed < num_frames:
            idle = [prefix for prefix, entry in self.model.items() if entry.frames not in self.held]
            if not idle:
                break
            leaves = [prefix for prefix in idle if not self.descendants(prefix)]
            victim = min(leaves or idle, key=lambda prefix: self.model[prefix].last_used)
            for prefix in [victim, *self.descendants(victim)]:
                freed += FRAMES_PER_PAGE * (self.model.pop(prefix).frames not in self.held)
                self.num_evicted += 1
        free_before = self.pool.num_free
        assert self.index.evict(num_frames) == freed
        assert self.pool.num_free - free_before == freed

    @invariant()
    def everything_adds_up(self) -> None:
        """Same pages, same idle ones, and no frame is lost."""
        self.index.check_integrity()
        self.pool.check_integrity()
        pages = {entry.frames for entry in self.model.values()}
        idle = pages - set(self.held)
        assert set(self.index.frames()) == pages
        assert self.index.num_idle_frames == len(idle) * FRAMES_PER_PAGE
        statistics = self.index.statistics()
        assert statistics.num_pages == len(self.model)
        assert statistics.num_inserted_pages - statistics.num_evicted_pages == len(self.model)
        assert statistics.num_evicted_pages == self.num_evicted
        assert self.pool.num_free == NUM_FRAMES - len(pages | set(self.held)) * FRAMES_PER_PAGE


TestPrefixIndex = PrefixMachine.TestCase
TestPrefixIndex.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_candidates_stay_few_while_nothing_is_evicted() -> None:
    """A page that is used over and over does not make the queue of eviction candidates grow."""
    pool = FramePool(2)
    index = PrefixIndex(pool, TOKENS_PER_PAGE, FRAMES_PER_PAGE)
    page = tuple(pool.allocate(2))
    index.insert("alice", [1, 2], [page])
    for _ in range(1000):
        for pfn in page:
            pool.release(pfn)
        index.note_release(page)
        assert index.match("alice", [1, 2]) == [page]
    assert len(index._candidates) < 100
    assert index.statistics().num_hits == 1000


def test_pages_of_a_fork_under_another_salt_stay_where_they_are() -> None:
    """A page that one tenant's entry holds is not entered again for a fork of another tenant."""
    pool = FramePool(2)
    index = PrefixIndex(pool, TOKENS_PER_PAGE, FRAMES_PER_PAGE)
    page = tuple(pool.allocate(2))
    assert index.insert("alice", [1, 2], [page]) == 1
    assert index.insert("bob", [1, 2], [page]) == 0
    assert index.match("bob", [1, 2]) == []
    index.check_integrity()


def test_one_page_cannot_hold_two_prefixes() -> None:
    """Inserting the same frames for other tokens is a kernel bug, and is called one."""
    pool = FramePool(2)
    index = PrefixIndex(pool, TOKENS_PER_PAGE, FRAMES_PER_PAGE)
    page = tuple(pool.allocate(2))
    index.insert("alice", [1, 2], [page])
    with pytest.raises(KernelPanic, match="two prefixes"):
        index.insert("alice", [3, 4], [page])
