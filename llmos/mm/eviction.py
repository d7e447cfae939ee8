"""Eviction policies of the prefix index: how much a page is worth keeping. Pure arithmetic."""

from __future__ import annotations

from typing import Protocol

from attrs import define

# At this position attention over the context costs as much as the rest of a token: the order of magnitude for
# models of 0.1 to 8 billion parameters, for devices that have not said what their own is.
DEFAULT_KNEE_TOKENS = 8192


class Eviction(Protocol):
    """Says what pages are worth. The one worth least is evicted first; of equals, the oldest."""

    name: str

    def value(self, position: int, num_tokens: int, num_uses: int) -> float:
        """What a page is worth from now on.

        Args:
            position: of its first token.
            num_tokens: that it holds.
            num_uses: processes that it has served, the first one included.
        """

    def note_evicted(self, value: float) -> None:
        """Hear what the page that was given up had been worth."""


class LeastRecentlyUsed:
    """Every page is worth the same: age decides."""

    name = "lru"

    def value(self, position: int, num_tokens: int, num_uses: int) -> float:
        """See Eviction."""
        return 0.0

    def note_evicted(self, value: float) -> None:
        """See Eviction."""


@define
class CostAware:
    """A page is worth what it would cost to compute it again, for each process that it has served.

    Computing a token costs a constant, and attention over all tokens before it. So pages far down a long
    prompt are expensive, so is a system prompt that everybody uses, and a few tokens in a page of their own
    are cheap. On top comes a floor, the value of the page that was evicted last. A page gets the floor of the
    time at which it is used, so one that nobody uses any more is overtaken in the end, whatever it was worth.

    Args:
        knee_tokens: the position at which attention over the context costs as much as the rest of a token.

    Source: Cherkasova 1998, Greedy-Dual-Size-Frequency, with a page's tokens for cost and pages for size.
    """

    knee_tokens: float = DEFAULT_KNEE_TOKENS
    name = "cost"
    _floor: float = 0.0

    def value(self, position: int, num_tokens: int, num_uses: int) -> float:
        """See Eviction."""
        return self._floor + num_uses * num_tokens * (1 + position / self.knee_tokens)

    def note_evicted(self, value: float) -> None:
        """See Eviction."""
        self._floor = max(self._floor, value)


def make_eviction(name: str, knee_tokens: float | None) -> Eviction:
    """Make one of EVICTION_POLICIES; `knee_tokens` as for CostAware, None: not known."""
    if name == CostAware.name:
        return CostAware(knee_tokens or DEFAULT_KNEE_TOKENS)
    return EVICTION_POLICIES[name]()


EVICTION_POLICIES: dict[str, type[LeastRecentlyUsed] | type[CostAware]] = {
    "cost": CostAware,
    "lru": LeastRecentlyUsed,
}
