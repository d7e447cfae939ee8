"""The prefix index: pages of ended processes, found again by the tokens that led to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from attrs import define, field, frozen

from llmos.errors import KernelPanic
from llmos.mm.eviction import CostAware, Eviction
from llmos.mm.frame import FramePool
from llmos.mm.idle_leaves import IdleLeaves
from llmos.mm.page_table import PageFrames
from llmos.mm.pins import Pins
from llmos.mm.prefix_drop import drop_in_pieces
from llmos.mm.prefix_node import TOKEN_BYTES, PageNode, pack_tokens
from llmos.mm.prefix_tree import PrefixTree, walk_below


@frozen
class PrefixStatistics:
    """A prefix index at one moment; the counters count since it was made."""

    num_pages: int
    num_idle_pages: int  # of those, with no other user: may be evicted
    num_queries: int
    num_hits: int  # queries that found something
    num_query_tokens: int  # that the queries asked for
    num_hit_tokens: int
    num_inserted_pages: int
    num_evicted_pages: int
    num_pinned_pages: int  # of those there are


@frozen
class Match:
    """What a prompt was found to start with. The caller owns one reference to each frame in it."""

    pages: list[PageFrames]  # pages 0, 1, …: to be mapped
    tail: PageFrames | None = None  # the next page, if it begins alike: to be copied, then released
    num_tail_tokens: int = 0


@define(eq=False)
class PrefixIndex:
    """Pages in a tree, by the tokens that led to them; each holds its frames.

    A page's keys and values depend on every token before it, so a page is found by its whole prefix, and
    equality of the token ids decides, not equality of a hash. Where a prompt leaves the tree inside a page,
    the tokens that agree are still worth a copy of that page. The last page of a process is kept though it is
    not full. Evicts the leaf of least value first, pinned ones after all others, so that what is left can
    always be reached. A call costs O(pages of its prompt · log children), an eviction O(log pages).

    Args:
        pool: of the frames; the index keeps one reference to each frame of its pages.
        tokens_per_page: the unit of sharing; of copying, it is a token.
        frames_per_page: frames behind one page.
        eviction: what pages are worth.
        pins: which of them outlast the others.

    Source: Zheng et al. 2024, SGLang (RadixAttention), with pages of many tokens and copies for the rest.
    """

    _pool: FramePool
    _tokens_per_page: int
    _frames_per_page: int
    _pins: Pins
    eviction: Eviction = field(factory=CostAware)
    _tree: PrefixTree = field(init=False)
    _leaves: IdleLeaves = field(init=False, factory=IdleLeaves)  # the candidates for eviction
    _clock: int = field(init=False, default=0)  # counts rankings
    _num_idle: int = field(init=False, default=0)
    _num_queries: int = field(init=False, default=0)
    _num_hits: int = field(init=False, default=0)
    _num_query_tokens: int = field(init=False, default=0)
    _num_hit_tokens: int = field(init=False, default=0)
    _num_inserted: int = field(init=False, default=0)
    _num_evicted: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._tree = PrefixTree(self._tokens_per_page)

    @property
    def num_idle_frames(self) -> int:
        """Frames that `evict` can free."""
        return self._num_idle * self._frames_per_page

    @property
    def min_tail_tokens(self) -> int:
        """Fewer tokens than these are not worth a copy of their page."""
        return max(1, self._tokens_per_page // 8)

    def match(self, salt: str, tokens: Sequence[int], limit: int | None = None) -> Match:
        """Find the longest run of tokens that a prompt starts with, and acquire its frames for the caller.

        Args:
            salt: pages are found under the salt that they were inserted with.
            tokens: ids of the prompt.
            limit: cover at most so many tokens; None: all of them.

        Returns:
            The pages; each frame has one more reference, which is now the caller's.
        """
        self._num_queries += 1
        num_tokens = len(tokens) if limit is None else max(0, min(limit, len(tokens)))
        self._num_query_tokens += num_tokens
        packed = pack_tokens(tokens[:num_tokens])
        nodes = self._tree.walk(salt, packed)
        for node in nodes:
            self._use(node)
        pages = [node.frames for node in nodes]
        last = nodes[-1] if nodes else self._tree.root(salt)
        similar, num_tail_tokens = last.most_similar(self._tree.page_after(nodes, packed))
        tail = None
        if similar is not None and num_tail_tokens >= self.min_tail_tokens:
            self._use(similar)
            tail = similar.frames
        else:
            num_tail_tokens = 0
        num_found = len(pages) * self._tokens_per_page + num_tail_tokens
        self._num_hits += bool(num_found)
        self._num_hit_tokens += num_found
        return Match(pages, tail, num_tail_tokens)

    def peek(self, salt: str, tokens: Sequence[int]) -> list[PageFrames]:
        """The whole pages that `match` would find. Nothing is acquired, and it does not count as a use."""
        return [node.frames for node in self._tree.walk(salt, pack_tokens(tokens))]

    def insert(self, salt: str, tokens: Sequence[int], pages: Sequence[PageFrames]) -> int:
        """Keep computed pages. The caller's references stay the caller's.

        A page whose tokens are there already is not taken: the first copy stays. One that holds more than an
        idle page did takes its place.

        Args:
            salt: as for `match`.
            tokens: ids of positions 0, 1, …
            pages: frames of the pages that hold them; more are ignored, and so are tokens without a page.

        Returns:
            How many pages were new.
        """
        packed = pack_tokens(tokens[: len(pages) * self._tokens_per_page])
        if not packed:
            return 0
        size = self._tree.page_bytes
        node = self._tree.root(salt)
        num_before = self._num_inserted
        for number, start in enumerate(range(0, len(packed), size)):
            key = packed[start : start + size]
            if len(key) < self.min_tail_tokens * TOKEN_BYTES:
                break
            child = node.children.get(key) or self._enter(node, key, pages[number])
            if child is None:
                break
            self._rank(child)
            node = child
        if node.is_idle:
            self._leaves.push(node)  # its old entry is stale now
        return self._num_inserted - num_before

    def pin(self, salt: str, tokens: Sequence[int], seconds: float) -> None:
        """Let the pages of a prompt outlast all that are not pinned, from now on, as far as they are there.

        Of one that its tenant may not pin to its end, the first pages are.
        """
        self._end_pins()
        until = self._pins.clock() + seconds
        packed = pack_tokens(tokens)
        nodes = self._tree.walk(salt, packed)
        for node in nodes:
            if not self._pin(node, until):
                return
        # The last tokens are in a page of their own, or in one that holds them, and more.
        last = nodes[-1] if nodes else self._tree.root(salt)
        rest = self._tree.page_after(nodes, packed)
        similar, num_common = last.most_similar(rest)
        if similar is not None and num_common * TOKEN_BYTES == len(rest):
            self._pin(last.children.get(rest, similar), until)

    def note_release(self, frames: PageFrames) -> None:
        """Hear that a user let go of a page; to be called after the release when references are left."""
        node = self._tree.nodes.get(frames[0])
        if node is not None and not node.is_idle and self._pool.refcounts[frames[0]] == 1:
            self._rank(node)
            node.is_idle = True
            self._num_idle += 1
            if not node.children:
                self._leaves.push(node)

    def evict(self, num_frames: int, *, spare_pinned: bool = False) -> int:
        """Give up pages until at least `num_frames` frames were freed, or none is left that could be.

        Args:
            num_frames: that are wanted.
            spare_pinned: they can be done without: stop where the next page to go is pinned.

        Returns:
            How many frames were freed.
        """
        self._end_pins()
        freed = 0
        while freed < num_frames and self._num_idle:
            # Where there is no leaf every idle page has one below it that a process maps (one that had
            # computed its own copies of the first pages). That process keeps its memory; the index forgets
            # that part.
            node = self._leaves.first() or min(
                (each for each in self._tree.nodes.values() if each.is_idle), key=lambda each: each.rank
            )
            if spare_pinned and node.is_pinned:
                break
            self.eviction.note_evicted(node.rank[1])
            gone = self._drop_branch(node)
            freed += sum(each.is_idle for each in gone) * self._frames_per_page
        return freed

    def drop(self, is_meant: Callable[[str], bool]) -> Iterator[int]:
        """Give up every idle page whose salt is meant, without a lack of frames; see `drop_in_pieces`.

        Pages that are in use stay, but for those that could not be reached any more, and so do pages that
        come in meanwhile. O(pages) in all.
        """
        return drop_in_pieces(list(self._tree.nodes.values()), is_meant, self._drop_branch)

    def reset(self) -> None:
        """The device lost its memory: forget every page without releasing it."""
        self._tree.clear()
        self._leaves.clear()
        self._pins.clear()
        self._num_idle = 0

    def holds(self, frames: PageFrames) -> bool:
        """Is this page in the index?"""
        return frames[0] in self._tree.nodes

    def frames(self) -> Iterator[PageFrames]:
        """All pages in the index."""
        return (node.frames for node in self._tree.nodes.values())

    def pages(self) -> Iterator[tuple[str, PageFrames]]:
        """All pages in the index, each with the salt that it is found under."""
        return ((node.salt, node.frames) for node in self._tree.nodes.values())

    def statistics(self) -> PrefixStatistics:
        """Count. O(1), but for the pins that have ended since somebody looked."""
        self._end_pins()
        return PrefixStatistics(
            num_pages=len(self._tree.nodes),
            num_idle_pages=self._num_idle,
            num_queries=self._num_queries,
            num_hits=self._num_hits,
            num_query_tokens=self._num_query_tokens,
            num_hit_tokens=self._num_hit_tokens,
            num_inserted_pages=self._num_inserted,
            num_evicted_pages=self._num_evicted,
            num_pinned_pages=self._pins.num_pages,
        )

    def num_pinned_pages_of(self, tenant: str) -> int:
        """Pages that a tenant has pinned."""
        self._end_pins()
        return self._pins.of(tenant)

    def check_integrity(self) -> None:
        """Raise KernelPanic where tree, references, idle count, candidates and pins disagree. O(pages)."""
        self._tree.check_integrity()
        nodes = list(self._tree.nodes.values())
        for node in nodes:
            references = {self._pool.refcount(pfn) for pfn in node.frames}
            if len(references) != 1 or (references == {1}) != node.is_idle:
                raise KernelPanic(f"page at frame {node.frames[0]}: {references}, idle: {node.is_idle}")
        if sum(node.is_idle for node in nodes) != self._num_idle:
            raise KernelPanic(f"{self._num_idle} idle pages are counted wrongly; {self.statistics()}")
        self._leaves.check_integrity([node for node in nodes if node.is_idle and not node.children])
        self._pins.check_integrity([node for node in nodes if node.is_pinned])

    # --- inside ------------------------------------------------------------------------------------------

    def _use(self, node: PageNode) -> None:
        """Give one user a reference to a page."""
        for pfn in node.frames:
            self._pool.acquire(pfn)
        node.num_uses += 1
        if node.is_idle:
            node.is_idle = False
            self._num_idle -= 1

    def _enter(self, parent: PageNode, key: bytes, frames: PageFrames) -> PageNode | None:
        """Take a page that is new; None where it is not, or where it must stay out."""
        elsewhere = self._tree.nodes.get(frames[0])
        if elsewhere is not None:
            if elsewhere.salt != parent.salt:
                return None  # shared with a space of another salt, by fork: it stays where it is
            same_tokens = key.startswith(elsewhere.key) or elsewhere.key.startswith(key)
            if elsewhere.parent is not parent or not same_tokens:
                raise KernelPanic(f"frame {frames[0]} holds the pages of two prefixes")
        is_full = len(key) == self._tree.page_bytes
        _, num_common = parent.most_similar(key)
        if not is_full and num_common * TOKEN_BYTES == len(key):
            return None  # some page holds all of it and more
        if elsewhere is not None:  # forked while a step was filling it: now it is known to hold more
            self._tree.lengthen(elsewhere, key)
            return elsewhere
        # Idle pages that hold only the first of these tokens: it holds them, too, and more.
        # It takes their pins.
        ends = []
        for num_tokens in range(self.min_tail_tokens, num_common + 1):
            shorter = parent.children.get(key[: num_tokens * TOKEN_BYTES])
            if shorter is not None and shorter.is_idle:
                ends.append(shorter.pinned_until or 0.0)
                self._drop(shorter)
        child = self._tree.add(parent, key, frames)
        for pfn in frames:
            self._pool.acquire(pfn)
        self._num_inserted += 1
        if (until := max(ends, default=0.0)) > 0.0:
            self._pin(child, until)
        return child

    def _pin(self, node: PageNode, until: float) -> bool:
        """Pin one page, if its tenant may."""
        if not self._pins.add(node, until):
            return False
        self._rerank(node)
        return True

    def _end_pins(self) -> None:
        for node in self._pins.take_ended():
            self._rerank(node)

    def _rerank(self, node: PageNode) -> None:
        """It is pinned now, or no longer; what it is worth has not changed."""
        node.rank = (node.is_pinned, *node.rank[1:])
        if node.is_idle and not node.children:
            self._leaves.push(node)

    def _rank(self, node: PageNode) -> None:
        """Settle what a page is worth from now on; of equals, the one that was settled last goes last."""
        self._clock += 1
        num_tokens = len(node.key) // TOKEN_BYTES
        worth = self.eviction.value(node.position, num_tokens, node.num_uses)
        node.rank = (node.is_pinned, worth, self._clock)

    def _drop_branch(self, node: PageNode) -> list[PageNode]:
        """Take out a page and all that can be reached through it only; returns them, the last first."""
        branch = [node, *walk_below(node)][::-1]
        for leaf in branch:
            self._drop(leaf)
        return branch

    def _drop(self, node: PageNode) -> None:
        """Take a leaf out."""
        parent = self._tree.remove(node)
        self._pins.remove(node)
        if node.is_idle:
            self._num_idle -= 1
        for pfn in node.frames:
            self._pool.release(pfn)
        self._num_evicted += 1
        if parent.is_idle and not parent.children:
            self._leaves.push(parent)
