"""Address spaces: the memory of one process on one device."""

from __future__ import annotations

from attrs import define, field

from llmos.device import Asid
from llmos.mm.page_table import PageFrames, PageTable


def tenant_of(salt: str) -> str:
    """Whose process it is, or was, that has this salt."""
    return salt.partition("\0")[0]


@define(eq=False)
class AddressSpace:
    """A process's keys and values, by position. Made, changed and closed by the VMM only.

    Whether a page may be written in place is not kept here: it may be when its frames have no other
    reference, and that changes when another space or the prefix index lets go of it.
    """

    asid: Asid
    # The tenant, perhaps "\0" and more: pages are shared through the prefix index under equal salts only.
    salt: str
    max_pages: int
    page_table: PageTable
    # By vpn: what the device has mapped there last, pages of the asid's former owners included. Frames that
    # are mapped where they are needed are the ones to take.
    mappings: list[PageFrames] = field(factory=list)
    ahead_tokens: int = 0  # with fewer left in the last page, the next one is mapped; 0: never ahead
    ahead: list[PageFrames] = field(init=False, factory=list)  # pages behind the table's last, mapped, unused
    is_open: bool = field(init=False, default=True)  # False: closed, or lost with the device's memory

    @property
    def num_pages(self) -> int:
        """Pages that it has, those mapped ahead of need not counted."""
        return len(self.page_table.entries)
