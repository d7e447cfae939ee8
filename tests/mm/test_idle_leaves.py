"""IdleLeaves against a sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.device import Pfn
from llmos.mm.idle_leaves import SLACK, IdleLeaves
from llmos.mm.prefix_node import PageNode

moves = st.tuples(st.integers(0, 4), st.sampled_from(["use", "leave", "pin", "unpin", "evict"]))


@given(st.lists(moves, max_size=200))
def test_the_least_of_those_that_are_idle_now_comes_first(moves: list[tuple[int, str]]) -> None:
    """Whatever was pushed before; entries that are stale are not kept without end."""
    leaves = IdleLeaves()
    root = PageNode(None, b"", "alice", (), 0)
    nodes = [PageNode(root, bytes([number]), "alice", (Pfn(number),), 0) for number in range(5)]
    for when, (number, move) in enumerate(moves):
        node = nodes[number]
        if move == "use":
            node.is_idle = False
        elif move == "leave":
            node.is_idle = True
            node.rank = (node.rank[0], 0.0, when)
            leaves.push(node)
        elif move == "evict":
            node.is_indexed = node.is_idle = False
            nodes[number] = PageNode(root, node.key, "alice", node.frames, 0)
        else:
            node.rank = (move == "pin", *node.rank[1:])
            if node.is_idle:
                leaves.push(node)
        idle = [node for node in nodes if node.is_idle]
        leaves.check_integrity(idle)
        assert leaves.first() is min(idle, key=lambda node: node.rank, default=None)
    assert len(leaves) <= 2 * len(nodes) + SLACK + 1
