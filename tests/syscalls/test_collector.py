"""The garbage collector of a process that serves."""

from __future__ import annotations

import subprocess
import sys

SETTLED = """
import gc
from syscalls.collector import YOUNG_OBJECTS, settle_collector

kept = [[] for _ in range(1000)]
settle_collector()
assert gc.get_freeze_count() >= 1000
assert gc.get_threshold()[0] == YOUNG_OBJECTS

class Node:
    pass

def make_cycle():
    node = Node()
    node.self = node

def num_nodes():
    return sum(isinstance(thing, Node) for thing in gc.get_objects())

for _ in range(5 * YOUNG_OBJECTS):
    make_cycle()
assert num_nodes() <= 2 * YOUNG_OBJECTS  # garbage in cycles still goes
"""


def test_what_is_there_is_left_alone_and_new_garbage_still_goes() -> None:
    """In a process of its own: the collector is everybody's."""
    subprocess.run([sys.executable, "-c", SETTLED], check=True)
