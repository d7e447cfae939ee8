"""The frame map: what each frame of a device is for, drawn small.

Taken, like the ledger, by walking every page when somebody asks; nothing on the way of a step pays for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from llmos.mm.ledger import Holder
from llmos.mm.vmm import VMM

KINDS = ("free", "moving", "cached", "ahead", "private", "shared")
FREE, MOVING, CACHED, AHEAD, PRIVATE, SHARED = range(len(KINDS))
MAX_CELLS = 1024


def take_frame_kinds(vmm: VMM, holders: Iterable[Holder]) -> bytearray:
    """Return an index into KINDS for each frame, by its number. O(frames + pages); mutates nothing."""
    refcounts = vmm.refcounts
    kinds = bytearray([MOVING if count else FREE for count in refcounts])
    for _, frames in vmm.cached_pages():
        for pfn in frames:
            kinds[pfn] = CACHED
    for holder in holders:
        if holder.space is None:
            continue
        num_used = vmm.kv.num_pages(holder.num_positions)
        for vpn, frames in enumerate(holder.space.page_table.entries):
            kind = SHARED if refcounts[frames[0]] > 1 else PRIVATE if vpn < num_used else AHEAD
            for pfn in frames:
                kinds[pfn] = kind
        for frames in holder.space.ahead:  # mapped before there is need: anybody may have them
            for pfn in frames:
                kinds[pfn] = FREE
    return kinds


def draw_cells(kinds: Sequence[int], max_cells: int = MAX_CELLS) -> tuple[int, list[tuple[str, int]]]:
    """Draw frames in at most `max_cells` cells, each of the kind that most of its frames have.

    Returns:
        Frames in a cell (the last may have fewer), and runs of (kind, number of cells).
    """
    frames_per_cell = max(1, -(-len(kinds) // max_cells))
    cells = []
    for start in range(0, len(kinds), frames_per_cell):
        cell = bytes(kinds[start : start + frames_per_cell])
        cells.append(max(range(len(KINDS)), key=cell.count))
    return frames_per_cell, [(KINDS[kind], sum(1 for _ in run)) for kind, run in groupby(cells)]
