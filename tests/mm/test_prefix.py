"""PrefixIndex against a dictionary of prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from unittest import mock

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmos.errors import KernelPanic
from llmos.mm import prefix_drop
from llmos.mm.eviction import CostAware, LeastRecentlyUsed
from llmos.mm.frame import FramePool
from llmos.mm.page_table import PageFrames
from llmos.mm.pins import Pins
from llmos.mm.prefix import Match, PrefixIndex

TOKENS_PER_PAGE = 3
FRAMES_PER_PAGE = 2
NUM_FRAMES = 400
MAX_PINNED_PAGES = 4

Prefix = tuple[str, tuple[int, ...]]  # salt, and the tokens up to the end of a page, or of what fills it
salts = st.sampled_from(["alice", "bob"])
prompts = st.lists(st.integers(0, 2), max_size=10)


@define
class Entry:
    """What the model knows of one page."""

    frames: PageFrames
    num_uses: int = 1
    rank: tuple[float, int] = (0.0, 0)
    until: float = 0.0  # pinned, if that is still to come


def start_of(prefix: Prefix) -> int:
    """The first position of the page that a prefix ends with."""
    return (len(prefix[1]) - 1) // TOKENS_PER_PAGE * TOKENS_PER_PAGE


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count equal first tokens."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def new_index(pool: FramePool, clock: Callable[[], float] = lambda: 1.0) -> PrefixIndex:
    """An index on its own."""
    return PrefixIndex(pool, TOKENS_PER_PAGE, FRAMES_PER_PAGE, Pins(clock, MAX_PINNED_PAGES))


class PrefixMachine(RuleBasedStateMachine):
    """The index agrees with a dictionary from whole prefixes to pages, searched the slow way."""

    eviction_policy: type[CostAware] | type[LeastRecentlyUsed]

    def __init__(self) -> None:
        super().__init__()
        self.pool = FramePool(NUM_FRAMES)
        self.now = 1.0
        pins = Pins(lambda: self.now, MAX_PINNED_PAGES)
        self.index = PrefixIndex(self.pool, TOKENS_PER_PAGE, FRAMES_PER_PAGE, pins, self.eviction_policy())
        self.worth = self.eviction_policy()  # the model's own
        self.model: dict[Prefix, Entry] = {}
        self.held: list[PageFrames] = []  # references of users
        self.clock = 0
        self.num_evicted = 0
        self.meant: frozenset[str] = frozenset()
        self.pieces: Iterator[int] | None = None  # a drop that is under way

    def rank(self, prefix: Prefix) -> None:
        """What the page is worth now."""
        self.clock += 1
        start, entry = start_of(prefix), self.model[prefix]
        entry.rank = (self.worth.value(start, len(prefix[1]) - start, entry.num_uses), self.clock)

    def drop(self, prefix: Prefix) -> int:
        """Forget a page; returns how many frames that frees."""
        self.num_evicted += 1
        return FRAMES_PER_PAGE * (self.model.pop(prefix).frames not in self.held)

    def longest(self, salt: str, tokens: list[int]) -> list[Prefix]:
        """Full pages of a prompt that are known, first to last."""
        found = []
        for end in range(TOKENS_PER_PAGE, len(tokens) + 1, TOKENS_PER_PAGE):
            if (salt, tuple(tokens[:end])) not in self.model:
                break
            found.append((salt, tuple(tokens[:end])))
        return found

    def is_pinned(self, prefix: Prefix) -> bool:
        """Does it outlast others?"""
        return self.model[prefix].until > self.now

    def siblings(self, salt: str, before: tuple[int, ...]) -> list[Prefix]:
        """Pages that come right after the given tokens."""
        size = len(before)
        return [p for p in self.model if p[0] == salt and start_of(p) == size and p[1][:size] == before]

    def let_go(self, frames: PageFrames) -> None:
        """A user gives a page back, as the VMM does."""
        self.held.remove(frames)
        for pfn in frames:
            self.pool.release(pfn)
        if self.pool.refcount(frames[0]):
            self.index.note_release(frames)
        for prefix, entry in self.model.items():
            if entry.frames == frames and frames not in self.held:
                self.rank(prefix)

    def descendants(self, prefix: Prefix) -> list[Prefix]:
        """Pages that follow a full one, at any distance."""
        salt, tokens = prefix
        size = len(tokens)
        if size % TOKENS_PER_PAGE:
            return []
        return [p for p in self.model if p[0] == salt and start_of(p) >= size and p[1][:size] == tokens]

    @rule(salt=salts, tokens=prompts, keep=st.booleans())
    def insert(self, salt: str, tokens: list[int], keep: bool) -> None:
        """Pages that are new are taken, the last one though it is not full; known ones are not."""
        num_pages = -(-len(tokens) // TOKENS_PER_PAGE)
        pages = [tuple(self.pool.allocate(FRAMES_PER_PAGE)) for _ in range(num_pages)]
        self.held += pages
        num_new = 0
        returned = self.index.insert(salt, tokens, pages)
        for number, frames in enumerate(pages):
            start = number * TOKENS_PER_PAGE
            prefix = (salt, tuple(tokens[: start + TOKENS_PER_PAGE]))
            if prefix not in self.model:
                siblings = self.siblings(salt, tuple(tokens[:start]))
                size = len(prefix[1])
                if size % TOKENS_PER_PAGE and any(p[1][:size] == prefix[1] for p in siblings):
                    break
                until = 0.0
                for sibling in siblings:
                    idle = self.model[sibling].frames not in self.held
                    if idle and prefix[1][: len(sibling[1])] == sibling[1]:
                        until = max(until, self.model[sibling].until)
                        self.drop(sibling)
                self.model[prefix] = Entry(frames, until=until)
                num_new += 1
            self.rank(prefix)
        assert returned == num_new
        if not keep:
            for frames in pages:
                self.let_go(frames)

    @rule(salt=salts, tokens=prompts, cut=st.integers(-1, 9), data=st.data())
    def match(self, salt: str, tokens: list[int], cut: int, data: st.DataObject) -> None:
        """The longest run of known tokens within the limit is found, and held for the caller."""
        limit = len(tokens) - 1 if cut < 0 else cut
        wanted = tokens[: max(0, limit)]
        pages = self.longest(salt, wanted)
        found = self.index.match(salt, tokens, limit)
        assert found.pages == [self.model[prefix].frames for prefix in pages]
        start = len(pages) * TOKENS_PER_PAGE
        common = {
            prefix: num_common(prefix[1], wanted) - start
            for prefix in self.siblings(salt, tuple(wanted[:start]))
        }
        assert found.num_tail_tokens == max(common.values(), default=0)
        used = [*pages]
        if found.num_tail_tokens:
            (tail,) = (p for p in common if self.model[p].frames == found.tail)
            assert common[tail] == found.num_tail_tokens
            used.append(tail)
        else:
            assert found.tail is None
        for prefix in used:
            self.model[prefix].num_uses += 1
            self.held.append(self.model[prefix].frames)
        if data.draw(st.booleans()):
            for prefix in used:
                self.let_go(self.model[prefix].frames)

    @rule(salt=salts, tokens=prompts, seconds=st.integers(1, 9))
    def pin(self, salt: str, tokens: list[int], seconds: int) -> None:
        """As many first pages of a prompt as are known, and as its tenant may have pinned."""
        pages = self.longest(salt, tokens)
        end = len(pages) * TOKENS_PER_PAGE
        rest = tuple(tokens[end:])
        if rest:
            holding = [
                p for p in self.siblings(salt, tuple(tokens[:end])) if p[1][: len(tokens)] == (*tokens,)
            ]
            same = (salt, tuple(tokens))
            # of several that hold more, the index takes the first in order of their tokens
            pages += [same] if same in holding else sorted(holding)[:1]
        for prefix in pages:
            entry = self.model[prefix]
            num_pinned = sum(self.is_pinned(p) for p in self.model if p[0] == salt)
            if not self.is_pinned(prefix):
                if num_pinned >= MAX_PINNED_PAGES:
                    break
                entry.until = 0.0
            entry.until = max(entry.until, self.now + seconds)
        self.index.pin(salt, tokens, seconds)

    @rule(seconds=st.integers(1, 9))
    def pass_time(self, seconds: int) -> None:
        """Some pins end."""
        self.now += seconds

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A user lets go of one page."""
        self.let_go(data.draw(st.sampled_from(self.held)))

    @rule(num_frames=st.integers(0, 9), spare_pinned=st.booleans())
    def evict(self, num_frames: int, spare_pinned: bool) -> None:
        """The leaves of least worth that nobody maps go first; all that is idle can go."""
        freed = 0
        while freed < num_frames:
            idle = [prefix for prefix, entry in self.model.items() if entry.frames not in self.held]
            if not idle:
                break
            leaves = [prefix for prefix in idle if not self.descendants(prefix)]
            victim = min(leaves or idle, key=lambda p: (self.is_pinned(p), self.model[p].rank))
            if spare_pinned and self.is_pinned(victim):
                break
            self.worth.note_evicted(self.model[victim].rank[0])
            for prefix in [victim, *self.descendants(victim)]:
                freed += self.drop(prefix)
        free_before = self.pool.num_free
        assert self.index.evict(num_frames, spare_pinned=spare_pinned) == freed
        assert self.pool.num_free - free_before == freed

    @rule(meant=st.frozensets(salts))
    def drop_idle(self, meant: frozenset[str]) -> None:
        """Every idle page of those salts goes, and with it what could not be reached without it."""
        idle = [p for p, entry in self.model.items() if p[0] in meant and entry.frames not in self.held]
        gone = {prefix for each in idle for prefix in [each, *self.descendants(each)]}
        freed = sum(self.drop(prefix) for prefix in gone)
        free_before = self.pool.num_free
        assert sum(self.index.drop(meant.__contains__)) == len(gone)
        assert self.pool.num_free - free_before == freed

    @precondition(lambda self: self.pieces is None)
    @rule(meant=st.frozensets(salts, min_size=1))
    def begin_to_drop(self, meant: frozenset[str]) -> None:
        """In pieces of one page, between which anything may happen."""
        self.meant, self.pieces = meant, self.index.drop(meant.__contains__)

    @precondition(lambda self: self.pieces is not None)
    @rule()
    def drop_piece(self) -> None:
        """Looks at one page: if that one is meant and idle it goes, with what follows it."""
        assert self.pieces is not None
        free_before = self.pool.num_free
        with mock.patch.object(prefix_drop, "DROP_PIECE", 1):
            num_pages = next(self.pieces, None)
        left = set(self.index.frames())
        gone = [prefix for prefix, entry in self.model.items() if entry.frames not in left]
        if num_pages is None:
            self.pieces = None
        assert (num_pages or 0) == len(gone)
        if gone:
            first = min(gone, key=lambda prefix: len(prefix[1]))
            assert first[0] in self.meant
            assert self.model[first].frames not in self.held
            assert set(gone) == {first, *self.descendants(first)}
        freed = sum(self.drop(prefix) for prefix in gone)
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
        assert statistics.num_pinned_pages == sum(map(self.is_pinned, self.model))
        for salt in ("alice", "bob"):
            num_pinned = sum(self.is_pinned(p) for p in self.model if p[0] == salt)
            assert self.index.num_pinned_pages_of(salt) == num_pinned <= MAX_PINNED_PAGES
        assert self.pool.num_free == NUM_FRAMES - len(pages | set(self.held)) * FRAMES_PER_PAGE


class CostAwareMachine(PrefixMachine):
    """By what pages cost."""

    eviction_policy = CostAware


class LeastRecentlyUsedMachine(PrefixMachine):
    """By age."""

    eviction_policy = LeastRecentlyUsed


TestCostAware = CostAwareMachine.TestCase
TestCostAware.settings = settings(max_examples=60, stateful_step_count=30)
TestLeastRecentlyUsed = LeastRecentlyUsedMachine.TestCase
TestLeastRecentlyUsed.settings = settings(max_examples=40, stateful_step_count=30)


def test_candidates_stay_few_while_nothing_is_evicted() -> None:
    """A page that is used over and over does not make the queue of eviction candidates grow."""
    pool = FramePool(2)
    index = new_index(pool)
    page = tuple(pool.allocate(2))
    index.insert("alice", [1, 2, 0], [page])
    for _ in range(1000):
        for pfn in page:
            pool.release(pfn)
        index.note_release(page)
        assert index.match("alice", [1, 2, 0]).pages == [page]
    assert len(index._leaves) < 100
    assert index.statistics().num_hits == 1000


def test_pages_of_a_fork_under_another_salt_stay_where_they_are() -> None:
    """A page that one tenant's entry holds is not entered again for a fork of another tenant."""
    pool = FramePool(2)
    index = new_index(pool)
    page = tuple(pool.allocate(2))
    assert index.insert("alice", [1, 2, 0], [page]) == 1
    assert index.insert("bob", [1, 2, 0], [page]) == 0
    assert index.match("bob", [1, 2, 0]) == Match([])
    index.check_integrity()


def test_one_page_cannot_hold_two_prefixes() -> None:
    """Inserting the same frames for other tokens is a kernel bug, and is called one."""
    pool = FramePool(2)
    index = new_index(pool)
    page = tuple(pool.allocate(2))
    index.insert("alice", [1, 2, 0], [page])
    with pytest.raises(KernelPanic, match="two prefixes"):
        index.insert("alice", [3, 4, 0], [page])


def test_a_page_forked_while_a_step_filled_it_is_known_by_its_longer_tokens() -> None:
    """The child ends first, with the tokens of the fork; then the parent, with those in flight then."""
    pool = FramePool(2)
    index = new_index(pool)
    page = tuple(pool.allocate(2))
    assert index.insert("alice", [1], [page]) == 1
    assert index.insert("alice", [1, 2], [page]) == 0
    assert index.match("alice", [1, 2, 5]) == Match([], page, 2)
    assert index.insert("alice", [1], [page]) == 0  # a sibling of the child
    assert index.match("alice", [1, 2, 5]) == Match([], page, 2)
    index.check_integrity()


def test_a_page_replaces_every_idle_one_that_it_continues() -> None:
    """Not only the one that it is most like: a page with the same first token, kept when it was in use."""
    pool = FramePool(NUM_FRAMES)
    index = new_index(pool)
    pages = [tuple(pool.allocate(FRAMES_PER_PAGE)) for _ in range(3)]
    for tokens, frames in zip(([7], [7, 7], [7, 8]), pages, strict=True):
        index.insert("bob", tokens, [frames])  # the first is in use while the second comes
        if len(tokens) == 2:
            for each in pages[:2] if frames is pages[1] else [frames]:
                for pfn in each:
                    pool.release(pfn)
                index.note_release(each)
    assert set(index.frames()) == set(pages[1:])
    index.check_integrity()


@define
class Shelf:
    """An index by hand: pages of ended processes, on a clock that stands still until it is told."""

    pool: FramePool = field(factory=lambda: FramePool(NUM_FRAMES))
    now: float = 1.0
    index: PrefixIndex = field(init=False)

    def __attrs_post_init__(self) -> None:
        pins = Pins(lambda: self.now, MAX_PINNED_PAGES)
        self.index = PrefixIndex(self.pool, TOKENS_PER_PAGE, FRAMES_PER_PAGE, pins, LeastRecentlyUsed())

    def leave(self, tokens: list[int], pin_seconds: float = 0.0) -> PageFrames:
        """A process leaves one page."""
        page = tuple(self.pool.allocate(FRAMES_PER_PAGE))
        self.index.insert("alice", tokens, [page])
        if pin_seconds:
            self.index.pin("alice", tokens, pin_seconds)
        for pfn in page:
            self.pool.release(pfn)
        self.index.note_release(page)
        return page

    def evict_all(self) -> list[PageFrames]:
        """Give pages up one by one; returns them in that order."""
        order = []
        while left := set(self.index.frames()):
            self.index.evict(1)
            self.index.check_integrity()
            (gone,) = left - set(self.index.frames())
            order.append(gone)
        return order


def test_pinned_pages_go_after_all_others() -> None:
    """Among themselves, too, the oldest goes first."""
    shelf = Shelf()
    first, second = shelf.leave([1, 1, 1], 9.0), shelf.leave([2, 2, 2], 5.0)
    third, fourth = shelf.leave([3, 3, 3]), shelf.leave([4, 4, 4])
    assert shelf.evict_all() == [third, fourth, first, second]
    assert shelf.index.statistics().num_pinned_pages == 0


def test_a_pin_that_has_ended_counts_for_nothing() -> None:
    """From that moment on it is in its old place. A pin can be prolonged, not cut short."""
    shelf = Shelf()
    first, second, third = (shelf.leave([number] * 3, 5.0) for number in (1, 2, 3))
    fourth = shelf.leave([4, 4, 4])
    shelf.index.pin("alice", [2, 2, 2], 20.0)
    shelf.index.pin("alice", [2, 2, 2], 1.0)
    shelf.index.pin("alice", [3, 3, 3], 1.0)
    shelf.now += 4.5
    assert shelf.index.statistics().num_pinned_pages == 3
    shelf.now += 1.0
    assert shelf.evict_all() == [first, third, fourth, second]


def test_a_page_takes_the_pins_of_those_that_it_replaces() -> None:
    """It holds what they held."""
    shelf = Shelf()
    shelf.leave([1, 1], 5.0)
    longer = shelf.leave([1, 1, 1])
    other = shelf.leave([2, 2, 2])
    assert shelf.index.statistics().num_pinned_pages == 1
    assert shelf.evict_all() == [other, longer]


def test_what_is_given_up_leaves_room_for_other_pins() -> None:
    """No more than the most are pinned; those that went are not counted any more."""
    shelf = Shelf()
    for number in range(MAX_PINNED_PAGES + 2):
        shelf.leave([number] * 3, 100.0)
    assert shelf.index.num_pinned_pages_of("alice") == MAX_PINNED_PAGES
    shelf.evict_all()
    assert shelf.index.num_pinned_pages_of("alice") == 0
    shelf.leave([7, 7, 7], 100.0)
    assert shelf.index.num_pinned_pages_of("alice") == 1
