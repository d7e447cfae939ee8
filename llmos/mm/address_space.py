"""Address spaces: the memory of one process on one device."""

from __future__ import annotations

from attrs import define, field

from llmos.device import Asid
from llmos.mm.page_table import PageTable


@define(eq=False)
class AddressSpace:
    """A process's keys and values, by position. Made, changed and closed by the VMM only.

    Whether a page may be written in place is not kept here: it may be when its frames have no other
    reference, and that changes when another space or the prefix index lets go of it.
    """

    asid: Asid
    salt: str  # of the tenant: pages are shared through the prefix index under equal salts only
    max_pages: int
    page_table: PageTable
    is_open: bool = field(init=False, default=True)  # False: closed, or lost with the device's memory

    @property
    def num_pages(self) -> int:
        """Pages that are mapped."""
        return len(self.page_table.entries)
