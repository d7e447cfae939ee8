"""How much of something there was lately."""

from __future__ import annotations

import attrs

NUM_SLOTS = 60


@attrs.define(eq=False)
class LastMinute:
    """A sum over the last minute, to the second. Times are seconds on the kernel's clock; none goes back."""

    _slots: list[float] = attrs.field(factory=lambda: [0.0] * NUM_SLOTS)
    _second: int = 0  # of the slot that was written last

    def add(self, amount: float, now: float) -> None:
        """Count something that happens now."""
        self._move_to(int(now))
        self._slots[self._second % NUM_SLOTS] += amount

    def total(self, now: float) -> float:
        """The sum over this second and the 59 before it."""
        self._move_to(int(now))
        return sum(self._slots)

    def _move_to(self, second: int) -> None:
        for gone in range(self._second + 1, min(second, self._second + NUM_SLOTS) + 1):
            self._slots[gone % NUM_SLOTS] = 0.0
        self._second = second
