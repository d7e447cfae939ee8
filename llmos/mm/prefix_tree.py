"""The tree of the prefix index: pages by the tokens that led to them."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field

from llmos.device import Pfn
from llmos.errors import KernelPanic
from llmos.mm.page_table import PageFrames
from llmos.mm.prefix_node import TOKEN_BYTES, PageNode


@define(eq=False)
class PrefixTree:
    """A radix tree over token ids, one root for each salt, whose nodes are pages.

    Only a full page has others after it. Tokens come packed, see `pack_tokens`.

    Args:
        tokens_per_page: of a full page.
    """

    tokens_per_page: int
    nodes: dict[Pfn, PageNode] = field(init=False, factory=dict)  # by first frame; to be read by others
    _roots: dict[str, PageNode] = field(init=False, factory=dict)  # of salts that have pages

    @property
    def page_bytes(self) -> int:
        """Of the tokens of a full page."""
        return self.tokens_per_page * TOKEN_BYTES

    def root(self, salt: str) -> PageNode:
        """Where the pages of a salt begin; one that has none gets its root with the first."""
        return self._roots.get(salt) or PageNode(None, b"", salt, (), 0)

    def walk(self, salt: str, packed: bytes) -> list[PageNode]:
        """The full pages that some tokens begin with, page 0 first."""
        found: list[PageNode] = []
        node = self._roots.get(salt)
        size = self.page_bytes
        for end in range(size, len(packed) + 1, size):
            node = node.children.get(packed[end - size : end]) if node is not None else None
            if node is None:
                break
            found.append(node)
        return found

    def page_after(self, nodes: list[PageNode], packed: bytes) -> bytes:
        """The tokens of the page that comes after those that `walk` found for the same tokens."""
        start = len(nodes) * self.page_bytes
        return packed[start : start + self.page_bytes]

    def add(self, parent: PageNode, key: bytes, frames: PageFrames) -> PageNode:
        """Enter a page after another one, or after a root."""
        position = 0 if parent.parent is None else parent.position + self.tokens_per_page
        node = PageNode(parent, key, parent.salt, frames, position)
        parent.adopt(node)
        if parent.parent is None:
            self._roots[parent.salt] = parent
        self.nodes[frames[0]] = node
        return node

    def lengthen(self, node: PageNode, key: bytes) -> None:
        """A page holds more tokens than was known."""
        assert node.parent is not None
        node.parent.disown(node)
        node.key = key
        node.parent.adopt(node)

    def remove(self, node: PageNode) -> PageNode:
        """Take out a page that none follows; returns what is before it."""
        parent = node.parent
        assert parent is not None
        parent.disown(node)
        del self.nodes[node.frames[0]]
        node.is_indexed = False
        if parent.parent is None and not parent.children:
            del self._roots[parent.salt]
        return parent

    def clear(self) -> None:
        """Forget all pages."""
        for node in self.nodes.values():
            node.is_indexed = False
        self.nodes.clear()
        self._roots.clear()

    def check_integrity(self) -> None:
        """Raise KernelPanic unless every page is linked as it should be, and found by its frame. O(pages)."""
        num_reached = 0
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
            if node.parent is None:
                continue
            num_reached += 1
            if len(node.key) < self.page_bytes and node.children:
                raise KernelPanic(f"the page at frame {node.frames[0]} is not full, and others follow it")
            if self.nodes.get(node.frames[0]) is not node or not node.is_indexed:
                raise KernelPanic(f"page at frame {node.frames[0]} is in the tree only")
        if num_reached != len(self.nodes):
            raise KernelPanic(f"{num_reached} pages in the tree, {len(self.nodes)} known by their frames")


def walk_below(node: PageNode) -> Iterator[PageNode]:
    """Descendants of a page, each after its parent."""
    stack = list(node.children.values())
    while stack:
        below = stack.pop()
        yield below
        stack.extend(below.children.values())
