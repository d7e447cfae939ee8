"""Steps that a device has not answered yet, and what they may still touch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from llmos.cost import StepWork
from llmos.device import CopyPage, Step
from llmos.mm.page_table import PageFrames
from llmos.proc.pcb import Process


@attrs.frozen
class InFlight:
    """A step that the device has not answered yet."""

    step: Step
    issued_at: float
    entries: list[tuple[Process, int, int, bool]]  # process, its epoch, end position, whether it samples
    work: StepWork


def last_use(in_flight: Sequence[InFlight], pages: Iterable[PageFrames], tokens_per_page: int) -> int:
    """The id of the last step in flight that may still need these pages for itself; 0: none may.

    So may a step that writes to one of them, and one that has a row for memory that was given up since: what
    that was is not known any more. Copies of pages count as all pages. O(rows in flight).

    Args:
        in_flight: in the order in which they were issued; edits that were not issued copy no page.
        pages: that are read, or that are nobody's and will be filled.
        tokens_per_page: of the device.
    """
    frames = {page[0] for page in pages}
    for flight in reversed(in_flight):
        if any(isinstance(edit, CopyPage) for edit in flight.step.edits):
            return flight.step.id
        for row, (process, epoch, end, _) in zip(flight.step.rows, flight.entries, strict=True):
            if process.epoch != epoch or process.space is None:
                return flight.step.id
            written = process.space.page_table.entries[
                row.start // tokens_per_page : -(-end // tokens_per_page)
            ]
            if not frames.isdisjoint(page[0] for page in written):
                return flight.step.id
    return 0
