"""The prefix index: pages of ended processes, found again by the tokens that led to them."""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Iterator, Sequence

from attrs import define, field, frozen

from llmos.device import Pfn
from llmos.errors import KernelPanic
from llmos.mm.frame import FramePool
from llmos.mm.page_table import PageFrames

_TOKEN = "I"  # array code: 32 bits a token


@frozen
class PrefixStatistics:
    """A prefix index at one moment; the counters count since it was made."""

    num_pages: int
    num_idle_pages: int  # of those, with no other user: may be evicted
    num_queries: int
    num_hits: int  # queries that found at least one page
    num_query_tokens: int  # that the queries asked for
    num_hit_tokens: int
    num_inserted_pages: int
    num_evicted_pages: int


@define(eq=False)
class _Node:
    """One full page after the pages of its ancestors. A root holds no page and has no parent."""

    parent: _Node | None
    key: bytes  # the page's own token ids; of a root: nothing
    salt: str
    frames: PageFrames
    children: dict[bytes, _Node] = field(factory=dict)
    last_used: int = 0
    is_idle: bool = False  # only the index refers to its frames
    is_indexed: bool = True


@define(eq=False)
class PrefixIndex:
    """A trie over full pages of token ids, one root for each salt; every page in it holds its frames.

    A page's keys and values depend on every token before it, so a page is found by its whole prefix, and
    equality of the token ids decides, not equality of a hash. Evicts the least recently used leaf first, so
    that what is left can always be reached. A call costs O(pages of its prompt), an eviction O(log pages).

    Args:
        pool: of the frames; the index keeps one reference to each frame of its pages.
        tokens_per_page: the unit of sharing.
        frames_per_page: frames behind one page.

    Source: Zheng et al. 2024, SGLang (RadixAttention), at the granularity of pages.
    """

    _pool: FramePool
    _tokens_per_page: int
    _frames_per_page: int
    _roots: dict[str, _Node] = field(init=False, factory=dict)
    _nodes: dict[Pfn, _Node] = field(init=False, factory=dict)  # by the first frame of the page
    # (last_used, tie-breaker, node): leaves that were idle when pushed. Entries go stale instead of being
    # searched for: one counts only if its node is still an idle leaf with that last_used.
    _candidates: list[tuple[int, int, _Node]] = field(init=False, factory=list)
    _clock: int = field(init=False, default=0)  # counts uses
    _tickets: Iterator[int] = field(init=False, factory=itertools.count)
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

    def match(self, salt: str, tokens: Sequence[int], limit: int | None = None) -> list[PageFrames]:
        """Find the longest run of pages that a prompt starts with, and acquire their frames for the caller.

        Args:
            salt: pages are found under the salt that they were inserted with.
            tokens: ids of the prompt.
            limit: cover at most so many tokens; None: all of them.

        Returns:
            The frames of pages 0, 1, …; each frame has one more reference, which is now the caller's.
        """
        self._num_queries += 1
        num_tokens = len(tokens) if limit is None else max(0, min(limit, len(tokens)))
        self._num_query_tokens += num_tokens
        found: list[PageFrames] = []
        node = self._roots.get(salt)
        if node is not None:
            for key in self._keys(tokens, num_tokens // self._tokens_per_page):
                node = node.children.get(key)
                if node is None:
                    break
                for pfn in node.frames:
                    self._pool.acquire(pfn)
                if node.is_idle:
                    node.is_idle = False
                    self._num_idle -= 1
                found.append(node.frames)
        self._num_hits += bool(found)
        self._num_hit_tokens += len(found) * self._tokens_per_page
        return found

    def insert(self, salt: str, tokens: Sequence[int], pages: Sequence[PageFrames]) -> int:
        """Keep computed pages. The caller's references stay the caller's.

        A page whose tokens are there already is not taken: the first copy stays.

        Args:
            salt: as for `match`.
            tokens: ids of positions 0, 1, …; a part of a page at the end is ignored.
            pages: frames of the pages that hold them.

        Returns:
            How many pages were new.
        """
        self._clock += 1
        num_pages = min(len(pages), len(tokens) // self._tokens_per_page)
        if not num_pages:
            return 0
        root = node = self._roots.get(salt) or _Node(None, b"", salt, ())
        num_new = 0
        for key, frames in zip(self._keys(tokens, num_pages), pages, strict=False):
            child = node.children.get(key)
            if child is None:
                elsewhere = self._nodes.get(frames[0])
                if elsewhere is not None:
                    if elsewhere.salt == salt:
                        raise KernelPanic(f"frame {frames[0]} holds the pages of two prefixes")
                    break  # shared with a space of another salt, by fork: it stays where it is
                child = _Node(node, key, salt, frames)
                node.children[key] = child
                self._nodes[frames[0]] = child
                for pfn in frames:
                    self._pool.acquire(pfn)
                num_new += 1
            child.last_used = self._clock
            node = child
        if root.children:
            self._roots[salt] = root
        if node.is_idle:
            self._push(node)  # its old entry is stale now
        self._num_inserted += num_new
        return num_new

    def note_release(self, frames: PageFrames) -> None:
        """Hear that a user let go of a page; to be called after the release when references are left."""
        node = self._nodes.get(frames[0])
        if node is not None and not node.is_idle and self._pool.refcounts[frames[0]] == 1:
            self._clock += 1  # later than its parent's, so that a chain is given up from its end
            node.is_idle = True
            node.last_used = self._clock
            self._num_idle += 1
            if not node.children:
                self._push(node)

    def evict(self, num_frames: int) -> int:
        """Give up pages until at least `num_frames` frames were freed, or none is left that could be.

        Returns:
            How many frames were freed.
        """
        freed = 0
        while freed < num_frames and self._num_idle:
            node = self._pop_leaf()
            if node is None:
                # Every idle page has one below it that a process maps (one that had computed its own copies
                # of the first pages). That process keeps its memory; the index forgets that part.
                node = min((each for each in self._nodes.values() if each.is_idle), key=lambda n: n.last_used)
                for below in reversed(list(self._walk_below(node))):
                    freed += self._drop(below)
            freed += self._drop(node)
        return freed

    def reset(self, pool: FramePool) -> None:
        """The device lost its memory: forget every page without releasing it, and use a new pool."""
        for node in self._nodes.values():
            node.is_indexed = False
        self._roots.clear()
        self._nodes.clear()
        self._candidates.clear()
        self._num_idle = 0
        self._pool = pool

    def frames(self) -> Iterator[PageFrames]:
        """All pages in the index."""
        return (node.frames for node in self._nodes.values())

    def statistics(self) -> PrefixStatistics:
        """Count. O(1)."""
        return PrefixStatistics(
            num_pages=len(self._nodes),
            num_idle_pages=self._num_idle,
            num_queries=self._num_queries,
            num_hits=self._num_hits,
            num_query_tokens=self._num_query_tokens,
            num_hit_tokens=self._num_hit_tokens,
            num_inserted_pages=self._num_inserted,
            num_evicted_pages=self._num_evicted,
        )

    def check_integrity(self) -> None:
        """Raise KernelPanic where trie, map of frames, idle count and candidates disagree. O(pages)."""
        reached = 0
        num_idle = 0
        candidates = {(last_used, id(node)) for last_used, _, node in self._candidates}
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
            if node.parent is None:
                continue
            reached += 1
            num_idle += node.is_idle
            references = {self._pool.refcount(pfn) for pfn in node.frames}
            if self._nodes.get(node.frames[0]) is not node or not node.is_indexed:
                raise KernelPanic(f"page at frame {node.frames[0]} is in the trie only")
            if len(references) != 1 or (references == {1}) != node.is_idle:
                raise KernelPanic(f"page at frame {node.frames[0]}: {references}, idle: {node.is_idle}")
            if node.is_idle and not node.children and (node.last_used, id(node)) not in candidates:
                raise KernelPanic(f"page at frame {node.frames[0]} can never be evicted")
        if (reached, num_idle) != (len(self._nodes), self._num_idle):
            raise KernelPanic(f"{reached} pages in the trie, {num_idle} idle; {self.statistics()}")

    # --- inside ------------------------------------------------------------------------------------------

    def _keys(self, tokens: Sequence[int], num_pages: int) -> Iterator[bytes]:
        size = self._tokens_per_page * 4
        packed = array(_TOKEN, tokens[: num_pages * self._tokens_per_page]).tobytes()
        return (packed[start : start + size] for start in range(0, len(packed), size))

    @staticmethod
    def _walk_below(node: _Node) -> Iterator[_Node]:
        """Descendants, each after its parent."""
        stack = list(node.children.values())
        while stack:
            below = stack.pop()
            yield below
            stack.extend(below.children.values())

    def _push(self, node: _Node) -> None:
        if len(self._candidates) > 2 * len(self._nodes) + 64:
            self._candidates = [entry for entry in self._candidates if self._is_current(entry)]
            heapq.heapify(self._candidates)
        heapq.heappush(self._candidates, (node.last_used, next(self._tickets), node))

    @staticmethod
    def _is_current(entry: tuple[int, int, _Node]) -> bool:
        last_used, _, node = entry
        return node.is_indexed and node.is_idle and not node.children and node.last_used == last_used

    def _pop_leaf(self) -> _Node | None:
        while self._candidates:
            entry = heapq.heappop(self._candidates)
            if self._is_current(entry):
                return entry[2]
        return None

    def _drop(self, node: _Node) -> int:
        """Take a leaf out; returns how many frames that freed."""
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        del self._nodes[node.frames[0]]
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
