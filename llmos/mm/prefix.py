"""The prefix index: pages of ended processes, found again by the tokens that led to them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

from attrs import define, field, frozen

from llmos.device import Pfn
from llmos.errors import KernelPanic
from llmos.mm.eviction import CostAware, Eviction
from llmos.mm.frame import FramePool
from llmos.mm.page_table import PageFrames
from llmos.mm.pins import Pins
from llmos.mm.prefix_node import TOKEN_BYTES, PageNode, pack_tokens

DROP_PIECE = 256  # pages: a few microseconds each


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
    tail: PageFrames | None = (
        None  # the next page agrees in its first tokens only: to be copied, then released
    )
    num_tail_tokens: int = 0


@define(eq=False)
class PrefixIndex:
    """A radix tree over token ids, one root for each salt, whose nodes are pages; each holds its frames.

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
    _roots: dict[str, PageNode] = field(init=False, factory=dict)
    _nodes: dict[Pfn, PageNode] = field(init=False, factory=dict)  # by the first frame of the page
    # (rank, node): leaves that were idle when pushed. Entries go stale instead of being searched for: one
    # counts only if its node is still an idle leaf of that rank. Ranks are unique while nodes are indexed.
    _candidates: list[tuple[tuple[bool, float, int], int, PageNode]] = field(init=False, factory=list)
    _clock: int = field(init=False, default=0)  # counts rankings
    _num_idle: int = field(init=False, default=0)
    _num_queries: int = field(init=False, default=0)
    _num_hits: int = field(init=False, default=0)
    _num_query_tokens: int = field(init=False, default=0)
    _num_hit_tokens: int = field(init=False, default=0)
    _num_inserted: int = field(init=False, default=0)
    _num_evicted: int = field(init=False, default=0)

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
        pages: list[PageFrames] = []
        node = self._roots.get(salt)
        if node is None:
            return Match(pages)
        packed = pack_tokens(tokens[:num_tokens])
        size = self._tokens_per_page * TOKEN_BYTES
        start = 0
        while start + size <= len(packed) and (child := node.children.get(packed[start : start + size])):
            self._use(child)
            pages.append(child.frames)
            node = child
            start += size
        similar, num_tail_tokens = node.most_similar(packed[start : start + size])
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
        pages: list[PageFrames] = []
        node = self._roots.get(salt)
        if node is None:
            return pages
        packed = pack_tokens(tokens)
        size = self._tokens_per_page * TOKEN_BYTES
        for start in range(0, len(packed) - size + 1, size):
            child = node.children.get(packed[start : start + size])
            if child is None:
                break
            pages.append(child.frames)
            node = child
        return pages

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
        size = self._tokens_per_page * TOKEN_BYTES
        root = node = self._roots.get(salt) or PageNode(None, b"", salt, (), 0)
        num_before = self._num_inserted
        for number, start in enumerate(range(0, len(packed), size)):
            key = packed[start : start + size]
            if len(key) < self.min_tail_tokens * TOKEN_BYTES:
                break
            child = node.children.get(key) or self._enter(node, key, pages[number], number)
            if child is None:
                break
            self._rank(child)
            node = child
        if root.children:
            self._roots[salt] = root
        if node.is_idle:
            self._push(node)  # its old entry is stale now
        return self._num_inserted - num_before

    def pin(self, salt: str, tokens: Sequence[int], seconds: float) -> None:
        """Let the pages of a prompt outlast all that are not pinned, from now on, as far as they are there.

        Of one that its tenant may not pin to its end, the first pages are.
        """
        self._end_pins()
        until = self._pins.clock() + seconds
        packed = pack_tokens(tokens)
        size = self._tokens_per_page * TOKEN_BYTES
        node = self._roots.get(salt)
        for start in range(0, len(packed), size):
            if node is None:
                break
            key = packed[start : start + size]
            child = node.children.get(key)
            if child is None:  # a page that holds the last tokens, and more
                similar, num_common = node.most_similar(key)
                child = similar if num_common * TOKEN_BYTES == len(key) else None
            if child is None or not self._pin(child, until):
                break
            node = child

    def note_release(self, frames: PageFrames) -> None:
        """Hear that a user let go of a page; to be called after the release when references are left."""
        node = self._nodes.get(frames[0])
        if node is not None and not node.is_idle and self._pool.refcounts[frames[0]] == 1:
            self._rank(node)
            node.is_idle = True
            self._num_idle += 1
            if not node.children:
                self._push(node)

    def evict(self, num_frames: int) -> int:
        """Give up pages until at least `num_frames` frames were freed, or none is left that could be.

        Returns:
            How many frames were freed.
        """
        self._end_pins()
        freed = 0
        while freed < num_frames and self._num_idle:
            node = self._pop_leaf()
            if node is None:
                # Every idle page has one below it that a process maps (one that had computed its own copies
                # of the first pages). That process keeps its memory; the index forgets that part.
                node = min((each for each in self._nodes.values() if each.is_idle), key=lambda n: n.rank)
                for below in reversed(list(self._walk_below(node))):
                    freed += self._drop(below)
            self.eviction.note_evicted(node.rank[1])
            freed += self._drop(node)
        return freed

    def drop(self, is_meant: Callable[[str], bool]) -> Iterator[int]:
        """Give up every idle page whose salt is meant, without a lack of frames.

        Pages that are in use stay, but for those that could not be reached any more. Whatever else may be
        done to the index between two pieces; pages that come in meanwhile stay. O(pages) in all.

        Yields:
            After each piece of DROP_PIECE pages that were looked at: how many were given up.
        """
        nodes = list(self._nodes.values())
        while nodes:
            num_before = self._num_evicted
            # From the last that came in: whatever follows a page came after it. So all that is idle behind
            # one is gone by then, and to give it up is a small piece of work, however long its prompt is.
            for _ in range(min(DROP_PIECE, len(nodes))):
                node = nodes.pop()
                if node.is_indexed and node.is_idle and is_meant(node.salt):
                    for below in reversed(list(self._walk_below(node))):
                        self._drop(below)
                    self._drop(node)
            yield self._num_evicted - num_before

    def reset(self, pool: FramePool) -> None:
        """The device lost its memory: forget every page without releasing it, and use a new pool."""
        for node in self._nodes.values():
            node.is_indexed = False
        self._roots.clear()
        self._nodes.clear()
        self._candidates.clear()
        self._pins.clear()
        self._num_idle = 0
        self._pool = pool

    def holds(self, frames: PageFrames) -> bool:
        """Is this page in the index?"""
        return frames[0] in self._nodes

    def frames(self) -> Iterator[PageFrames]:
        """All pages in the index."""
        return (node.frames for node in self._nodes.values())

    def pages(self) -> Iterator[tuple[str, PageFrames]]:
        """All pages in the index, each with the salt that it is found under."""
        return ((node.salt, node.frames) for node in self._nodes.values())

    def statistics(self) -> PrefixStatistics:
        """Count. O(1), but for the pins that have ended since somebody looked."""
        self._end_pins()
        return PrefixStatistics(
            num_pages=len(self._nodes),
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
        """Raise KernelPanic where trie, map of frames, idle count and candidates disagree. O(pages)."""
        size = self._tokens_per_page * TOKEN_BYTES
        reached = 0
        num_idle = 0
        candidates = {(rank, id(node)) for rank, _, node in self._candidates}
        stack = list(self._roots.values())
        for root in stack:
            if not root.children:
                raise KernelPanic(f"salt {root.salt!r} has a root and no pages")
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            for key, child in node.children.items():
                if child.parent is not node or child.key != key or child.salt != node.salt:
                    raise KernelPanic(f"page at frame {child.frames[0]} is linked wrongly")
            if node.keys != sorted(node.children):
                raise KernelPanic(f"the children of the page at frame {node.frames[:1]} are out of order")
            if node.parent is not None and len(node.key) < size and node.children:
                raise KernelPanic(f"the page at frame {node.frames[0]} is not full, and others follow it")
            if node.parent is None:
                continue
            reached += 1
            num_idle += node.is_idle
            references = {self._pool.refcount(pfn) for pfn in node.frames}
            if self._nodes.get(node.frames[0]) is not node or not node.is_indexed:
                raise KernelPanic(f"page at frame {node.frames[0]} is in the trie only")
            if len(references) != 1 or (references == {1}) != node.is_idle:
                raise KernelPanic(f"page at frame {node.frames[0]}: {references}, idle: {node.is_idle}")
            if node.is_idle and not node.children and (node.rank, id(node)) not in candidates:
                raise KernelPanic(f"page at frame {node.frames[0]} can never be evicted")
        self._pins.check_integrity([n for n in self._nodes.values() if n.pinned_until is not None])
        if (reached, num_idle) != (len(self._nodes), self._num_idle):
            raise KernelPanic(f"{reached} pages in the trie, {num_idle} idle; {self.statistics()}")

    # --- inside ------------------------------------------------------------------------------------------

    def _use(self, node: PageNode) -> None:
        """Give one user a reference to a page."""
        for pfn in node.frames:
            self._pool.acquire(pfn)
        node.num_uses += 1
        if node.is_idle:
            node.is_idle = False
            self._num_idle -= 1

    def _enter(self, parent: PageNode, key: bytes, frames: PageFrames, number: int) -> PageNode | None:
        """Take a page that is new; None where it is not, or where it must stay out."""
        elsewhere = self._nodes.get(frames[0])
        if elsewhere is not None:
            if elsewhere.salt != parent.salt:
                return None  # shared with a space of another salt, by fork: it stays where it is
            same_tokens = key.startswith(elsewhere.key) or elsewhere.key.startswith(key)
            if elsewhere.parent is not parent or not same_tokens:
                raise KernelPanic(f"frame {frames[0]} holds the pages of two prefixes")
        is_full = len(key) == self._tokens_per_page * TOKEN_BYTES
        _, num_common = parent.most_similar(key)
        if not is_full and num_common * TOKEN_BYTES == len(key):
            return None  # some page holds all of it and more
        if elsewhere is not None:  # forked while a step was filling it: now it is known to hold more
            parent.disown(elsewhere)
            elsewhere.key = key
            parent.adopt(elsewhere)
            return elsewhere
        # Idle pages that hold only the first of these tokens: it holds them, too, and more.
        # It takes their pins.
        ends = []
        for num_tokens in range(self.min_tail_tokens, num_common + 1):
            shorter = parent.children.get(key[: num_tokens * TOKEN_BYTES])
            if shorter is not None and shorter.is_idle:
                ends.append(shorter.pinned_until or 0.0)
                self._drop(shorter)
        child = PageNode(parent, key, parent.salt, frames, number * self._tokens_per_page)
        parent.adopt(child)
        self._nodes[frames[0]] = child
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
        node.rank = (node.pinned_until is not None, *node.rank[1:])
        if node.is_idle and not node.children:
            self._push(node)

    def _rank(self, node: PageNode) -> None:
        """Settle what a page is worth from now on; of equals, the one that was settled last goes last."""
        self._clock += 1
        num_tokens = len(node.key) // TOKEN_BYTES
        worth = self.eviction.value(node.position, num_tokens, node.num_uses)
        node.rank = (node.pinned_until is not None, worth, self._clock)

    @staticmethod
    def _walk_below(node: PageNode) -> Iterator[PageNode]:
        """Descendants, each after its parent."""
        stack = list(node.children.values())
        while stack:
            below = stack.pop()
            yield below
            stack.extend(below.children.values())

    def _push(self, node: PageNode) -> None:
        if len(self._candidates) > 2 * len(self._nodes) + 64:
            self._candidates = [entry for entry in self._candidates if self._is_current(entry)]
            heapq.heapify(self._candidates)
        heapq.heappush(self._candidates, (node.rank, id(node), node))

    @staticmethod
    def _is_current(entry: tuple[tuple[bool, float, int], int, PageNode]) -> bool:
        rank, _, node = entry
        return node.is_indexed and node.is_idle and not node.children and node.rank == rank

    def _pop_leaf(self) -> PageNode | None:
        while self._candidates:
            entry = heapq.heappop(self._candidates)
            if self._is_current(entry):
                return entry[2]
        return None

    def _drop(self, node: PageNode) -> int:
        """Take a leaf out; returns how many frames that freed."""
        parent = node.parent
        assert parent is not None
        parent.disown(node)
        del self._nodes[node.frames[0]]
        self._pins.remove(node)
        node.is_indexed = False
        if node.is_idle:
            self._num_idle -= 1
        for pfn in node.frames:
            self._pool.release(pfn)
        self._num_evicted += 1
        if not parent.children:
            if parent.parent is None:
                del self._roots[parent.salt]
            elif parent.is_idle:
                self._push(parent)
        return len(node.frames) if node.is_idle else 0
