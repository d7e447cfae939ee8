"""Page-table edits that wait for the next step."""

from __future__ import annotations

from attrs import define, field

from llmos.device import CopyPage, Edit
from llmos.mm.page_table import PageFrames


@define(eq=False)
class EditQueue:
    """Edits in the order in which the device must carry them out."""

    has_page_copies: bool = field(init=False, default=False)  # among those that are queued
    _edits: list[Edit] = field(init=False, factory=list)

    def __len__(self) -> int:
        return len(self._edits)

    def put(self, edit: Edit) -> None:
        """Queue an edit, behind all others. For a copy there is `copy_page`."""
        self._edits.append(edit)

    def copy_page(self, source: PageFrames, target: PageFrames) -> None:
        """Have a page copied.

        Its source may be given back, and go to someone else, at once: that one's edits and writes come after
        the copy.
        """
        self._edits.append(CopyPage(source, target))
        self.has_page_copies = True

    def take(self) -> tuple[Edit, ...]:
        """Drain the queue."""
        edits = tuple(self._edits)
        self.clear()
        return edits

    def clear(self) -> None:
        """Forget all edits: the device they were for is gone."""
        self._edits.clear()
        self.has_page_copies = False
