"""Steps that a device has not answered yet, and what they may still touch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import attrs
import trio

from llmos.cost import StepWork
from llmos.device import CopyPage, Edit, Row, Step, StepDone
from llmos.mm.page_table import PageFrames
from llmos.proc.pcb import Process

Entry = tuple[Process, int, int, bool]
"""Whose a row is: the process, its epoch, the row's end position, whether it samples.

A plain tuple, since hundreds are made and unpacked in every step.
"""


@attrs.frozen
class InFlight:
    """A step that the device has not answered yet."""

    step: Step
    issued_at: float
    entries: Sequence[Entry]  # one for each row
    work: StepWork


@attrs.define(eq=False)
class StepsInFlight:
    """The steps in flight of one device, oldest first: it answers them in that order."""

    last_id: int = 0  # of the step that was issued last, whether it is answered or not
    _steps: deque[InFlight] = attrs.field(init=False, factory=deque)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def oldest(self) -> InFlight | None:
        """The one that the device answers next."""
        return self._steps[0] if self._steps else None

    def issue(
        self, edits: tuple[Edit, ...], rows: Sequence[Row], entries: Sequence[Entry], work: StepWork
    ) -> Step:
        """Make the next step, to be sent to the device, and expect its answer."""
        self.last_id += 1
        step = Step(self.last_id, edits, tuple(rows))
        self._steps.append(InFlight(step, trio.current_time(), entries, work))
        return step

    def issue_edits(self, edits: tuple[Edit, ...]) -> Step:
        """Make a step that computes nothing."""
        return self.issue(edits, (), (), StepWork())

    def take_answered(self, result: StepDone) -> InFlight | None:
        """Take out the step that a result answers; None: it does not answer the oldest, row by row."""
        oldest = self.oldest
        if oldest is None or (result.id, len(result.tokens)) != (oldest.step.id, len(oldest.entries)):
            return None
        return self._steps.popleft()

    def clear(self) -> None:
        """The device is gone, and will answer nothing."""
        self._steps.clear()

    def last_use(self, pages: Iterable[PageFrames], tokens_per_page: int) -> int:
        """The id of the last step that may still need these pages for itself; 0: none may.

        So may a step that writes to one of them, and one that has a row for memory that was given up since:
        what that was is not known any more. Copies of pages count as all pages. Edits that were not issued
        must copy none. O(rows in flight).

        Args:
            pages: that are read, or that are nobody's and will be filled.
            tokens_per_page: of the device.
        """
        frames = {page[0] for page in pages}
        for flight in reversed(self._steps):
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
