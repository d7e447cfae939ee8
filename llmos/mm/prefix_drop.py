"""Dropping the prefix cache, piece by piece: because somebody asks for it, not because frames are short."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llmos.mm.prefix_node import PageNode

DROP_PIECE = 256  # pages: a few microseconds each


def drop_in_pieces(
    nodes: list[PageNode], is_meant: Callable[[str], bool], drop_branch: Callable[[PageNode], list[PageNode]]
) -> Iterator[int]:
    """Give up those of some pages that are idle. Between two pieces anything may be done to their index.

    Args:
        nodes: pages, each after the one before it in its prompt; taken apart.
        is_meant: asked for the salt of each.
        drop_branch: gives up a page and all behind it; returns those that it gave up.

    Yields:
        After each piece of DROP_PIECE pages that were looked at: how many were given up.
    """
    while nodes:
        num_dropped = 0
        # From the last that came in: whatever follows a page came after it. So all that is idle behind
        # one is gone by then, and to give it up is a small piece of work, however long its prompt is.
        for _ in range(min(DROP_PIECE, len(nodes))):
            node = nodes.pop()
            if node.is_indexed and node.is_idle and is_meant(node.salt):
                num_dropped += len(drop_branch(node))
        yield num_dropped
