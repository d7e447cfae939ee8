"""Copies of pages on the tiers below a device, and a process's set of them."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from attrs import define, field

from llmos.device import Tier
from llmos.mm.page_table import PageFrames


class CopyState(enum.Enum):
    """Whether the bytes of a copy can be trusted."""

    PENDING = "pending"  # on their way
    WHOLE = "whole"
    LOST = "lost"  # never arrived, contaminated, or given up


@define(eq=False)
class PageCopy:
    """One page on a lower tier.

    Keys and values are only appended, so a copy stays right for the tokens it was made of, whatever the page
    has become since: it is clean for a process that has no more tokens in that page, and else its tail is
    dirty. Processes that shared the page share the copy.
    """

    tier: Tier
    slots: tuple[int, ...]  # one for each segment
    num_tokens: int  # that it holds, from the first of its page on
    path: str = ""  # of a file
    checksums: tuple[int, ...] = ()  # of its slots, on disk and in files
    state: CopyState = CopyState.PENDING
    num_users: int = 0  # backings that it is in
    num_needed: int = 0  # of those, whose process has no other copy of the page
    num_transfers: int = 0  # in flight, to it or from it
    # The page on the device, while its first frame is in that life: it holds all that the copy does.
    home: tuple[PageFrames, int] | None = None
    holds_slots: bool = True  # a lost copy holds them until no transfer touches them

    @property
    def is_redundant(self) -> bool:
        """True when whoever uses it has the page on the device as well."""
        return self.num_needed == 0 and self.num_transfers == 0


@define(eq=False)
class Backing:
    """What one process has on lower tiers, page by page."""

    pages: list[PageCopy | None] = field(factory=list)
    is_needed: bool = False  # the process has no memory on the device

    def __iter__(self) -> Iterator[PageCopy]:
        return (copy for copy in self.pages if copy is not None and copy.state is not CopyState.LOST)

    def usable(self, vpn: int) -> PageCopy | None:
        """The copy of a page, if there is one or will be."""
        copy = self.pages[vpn] if vpn < len(self.pages) else None
        return copy if copy is not None and copy.state is not CopyState.LOST else None

    def num_tokens(self, tokens_per_page: int) -> int:
        """Tokens that can be had back, from position 0 on without a gap."""
        covered = 0
        for copy in self.pages:
            if copy is None or copy.state is not CopyState.WHOLE:
                break
            covered += copy.num_tokens
            if copy.num_tokens < tokens_per_page:
                break
        return covered

    def put(self, vpn: int, copy: PageCopy | None) -> PageCopy | None:
        """Set the copy of a page; returns the one it replaces, to be let go of."""
        while len(self.pages) <= vpn:
            self.pages.append(None)
        old, self.pages[vpn] = self.pages[vpn], copy
        for page, step in ((old, -1), (copy, 1)):
            if page is not None:
                page.num_users += step
                page.num_needed += step * self.is_needed
        return old

    def set_needed(self, is_needed: bool) -> None:
        """Say whether the process depends on these copies."""
        if is_needed != self.is_needed:
            self.is_needed = is_needed
            for copy in self.pages:
                if copy is not None:
                    copy.num_needed += 1 if is_needed else -1
