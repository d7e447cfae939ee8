"""Nodes of the prefix index: pages in a tree, found by token ids that are compared as bytes."""

from __future__ import annotations

import bisect
import sys
from array import array
from collections.abc import Sequence

from attrs import define, field

from llmos.mm.address_space import tenant_of
from llmos.mm.page_table import PageFrames

TOKEN_BYTES = 4

Rank = tuple[bool, float, int]
"""Of pages the least goes first: is it pinned, what is it worth, and when was that settled?"""


@define(eq=False)
class PageNode:
    """One page after the pages of its ancestors. A root holds no page and has no parent."""

    parent: PageNode | None
    key: bytes  # the page's own token ids; fewer than fit: then it has no children; of a root: none
    salt: str
    frames: PageFrames
    position: int  # of its first token
    children: dict[bytes, PageNode] = field(factory=dict)
    keys: list[bytes] = field(factory=list)  # of the children, sorted: the most similar ones are neighbours
    num_uses: int = 1
    rank: Rank = (False, 0.0, 0)
    pinned_until: float | None = None  # None: it is not; written by Pins only
    is_idle: bool = False  # only the index refers to its frames
    is_indexed: bool = True

    @property
    def is_pinned(self) -> bool:
        """Is it to outlast those that are not?"""
        return self.pinned_until is not None

    @property
    def tenant(self) -> str:
        """Whose page it is."""
        return tenant_of(self.salt)

    def adopt(self, child: PageNode) -> None:
        """Enter a child."""
        self.children[child.key] = child
        bisect.insort(self.keys, child.key)

    def disown(self, child: PageNode) -> None:
        """Take a child out."""
        del self.children[child.key]
        del self.keys[bisect.bisect_left(self.keys, child.key)]

    def most_similar(self, key: bytes) -> tuple[PageNode | None, int]:
        """Find the child that shares most first tokens with a key, and how many those are."""
        best, most = None, 0
        place = bisect.bisect_left(self.keys, key)
        for neighbour in self.keys[max(0, place - 1) : place + 1]:
            if (common := num_common_tokens(neighbour, key)) > most:
                best, most = self.children[neighbour], common
        return best, most


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Token ids, big-endian: the order of the bytes is the order of the ids."""
    packed = array("I", tokens)
    if sys.byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


def num_common_tokens(one: bytes, other: bytes) -> int:
    """Count equal first tokens."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size // TOKEN_BYTES
    low, high = 0, size // TOKEN_BYTES  # the first `low` are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if one[: middle * TOKEN_BYTES] == other[: middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle
    return low
