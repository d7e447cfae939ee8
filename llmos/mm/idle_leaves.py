"""Pages that can be evicted, in the order in which they would be."""

from __future__ import annotations

import heapq

from attrs import define, field

from llmos.errors import KernelPanic
from llmos.mm.prefix_node import PageNode, Rank

SLACK = 64  # entries that may be stale before it is worth looking for them


@define(eq=False)
class IdleLeaves:
    """A heap of pages that nobody uses and no page follows, by rank.

    Entries go stale instead of being searched for: one counts only if its node is still an idle leaf of that
    rank. Ranks are unique while nodes are indexed. O(log entries) per call, averaged over
    many. No more entries are stale than are current, but for SLACK.
    """

    _heap: list[tuple[Rank, int, PageNode]] = field(init=False, factory=list)
    _max_entries: int = field(init=False, default=SLACK)

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, node: PageNode) -> None:
        """Enter an idle leaf, or its new rank: what it had is stale now."""
        if len(self._heap) > self._max_entries:
            # Each once: a page whose rank changed and changed back was entered again.
            self._heap = list({entry[:2]: entry for entry in self._heap if _is_current(entry)}.values())
            heapq.heapify(self._heap)
            self._max_entries = 2 * len(self._heap) + SLACK
        heapq.heappush(self._heap, (node.rank, id(node), node))

    def first(self) -> PageNode | None:
        """The page that goes first; None: there is none."""
        while self._heap and not _is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def clear(self) -> None:
        """Forget all of them."""
        self._heap.clear()

    def check_integrity(self, leaves: list[PageNode]) -> None:
        """Raise KernelPanic unless each of these idle leaves will have its turn."""
        entries = {(rank, id(node)) for rank, _, node in self._heap}
        for node in leaves:
            if (node.rank, id(node)) not in entries:
                raise KernelPanic(f"page at frame {node.frames[0]} can never be evicted")


def _is_current(entry: tuple[Rank, int, PageNode]) -> bool:
    rank, _, node = entry
    return node.is_indexed and node.is_idle and not node.children and node.rank == rank
