"""Pins: pages of the prefix index that are to outlast others for a time, so many for each tenant."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator

from attrs import define, field

from llmos.errors import KernelPanic
from llmos.mm.prefix_node import PageNode


@define(eq=False)
class Pins:
    """Whose pages are pinned, and until when. A pin is a wish: it orders eviction and keeps nothing from it.

    The page before a pinned one is pinned for at least as long, so a prefix loses its pins from its end.

    Args:
        clock: seconds, never going back.
        max_pages: that a tenant may have pinned at once.
    """

    clock: Callable[[], float]
    max_pages: int
    _num_pages: Counter[str] = field(init=False, factory=Counter)  # by tenant
    # (when, order, node): one entry for each pinned page, whose pin may have been prolonged meanwhile, and
    # some for pages that are gone: at most as many as there are pinned ones, and 64.
    _ends: list[tuple[float, int, PageNode]] = field(init=False, factory=list)
    _num_entries: int = field(init=False, default=0)

    @property
    def num_pages(self) -> int:
        """Pages that are pinned, those whose time is over but was not looked at yet among them."""
        return self._num_pages.total()

    def of(self, tenant: str) -> int:
        """Pages that a tenant has pinned."""
        return self._num_pages[tenant]

    def add(self, node: PageNode, until: float) -> bool:
        """Pin a page, or prolong its pin.

        Returns:
            False when its tenant has pinned as much as it may; then nothing was changed.
        """
        if node.pinned_until is None:
            if self._num_pages[node.tenant] >= self.max_pages:
                return False
            self._num_pages[node.tenant] += 1
            node.pinned_until = until
            self._push(node, until)
        else:
            node.pinned_until = max(node.pinned_until, until)
        return True

    def remove(self, node: PageNode) -> None:
        """A page is no longer pinned, or no longer there; not an error for one that was not."""
        if node.pinned_until is not None:
            node.pinned_until = None
            self._num_pages[node.tenant] -= 1
            if not self._num_pages[node.tenant]:
                del self._num_pages[node.tenant]

    def take_ended(self) -> Iterator[PageNode]:
        """Unpin the pages whose time is over, and tell them."""
        while self._ends and self._ends[0][0] <= self.clock():
            _, _, node = heapq.heappop(self._ends)
            if node.pinned_until is None:
                continue
            if node.pinned_until > self.clock():
                self._push(node, node.pinned_until)
            else:
                self.remove(node)
                yield node

    def clear(self) -> None:
        """Forget all of them."""
        self._ends.clear()
        self._num_pages.clear()

    def check_integrity(self, pinned: list[PageNode]) -> None:
        """Raise KernelPanic unless exactly these pages are counted, and each one's time will come."""
        if Counter(node.tenant for node in pinned) != self._num_pages:
            raise KernelPanic(f"pinned pages are counted wrongly: {self._num_pages}")
        awaited = {id(node): when for when, _, node in self._ends}
        for node in pinned:
            before = node.parent
            assert node.pinned_until is not None
            assert before is not None
            if awaited.get(id(node), node.pinned_until + 1) > node.pinned_until:
                raise KernelPanic(f"the pin of the page at frame {node.frames[0]} will never end")
            if before.parent is not None and (before.pinned_until or 0.0) < node.pinned_until:
                raise KernelPanic(f"the page at frame {node.frames[0]} is pinned longer than the one before")

    def _push(self, node: PageNode, when: float) -> None:
        if len(self._ends) > 2 * self.num_pages + 64:
            self._ends = [entry for entry in self._ends if entry[2].pinned_until is not None]
            heapq.heapify(self._ends)
        self._num_entries += 1
        heapq.heappush(self._ends, (when, self._num_entries, node))
