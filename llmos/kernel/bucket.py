"""Token buckets: so much per minute, of which a minute's worth may come at once."""

from __future__ import annotations

import attrs

SLACK = 1e-6  # whoever waited as long as it was told must not fail by a rounding


@attrs.define(eq=False)
class Bucket:
    """Refills steadily up to `per_minute`. Times are seconds on the kernel's clock and never go back.

    While only what `wait_seconds` calls free is taken, any t seconds let at most per_minute · (1 + t / 60)
    through. What is known only afterwards is taken all the same, and makes a debt that others wait for.
    """

    per_minute: float
    _at: float  # when the level was true
    _level: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._level = self.per_minute

    def level(self, now: float) -> float:
        """What may be taken; below 0: a debt."""
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def wait_seconds(self, amount: float, now: float) -> float | None:
        """How long until `amount` may be taken, if nothing else is: 0 when it may be now, None if never."""
        if amount > self.per_minute:
            return None
        missing = amount - self.level(now)
        return missing * 60 / self.per_minute if missing > SLACK else 0.0

    def change(self, per_minute: float, now: float) -> None:
        """Set another rate. What was taken stays taken: with less there may be a debt at once."""
        self._level = self.level(now) + per_minute - self.per_minute
        self.per_minute = per_minute

    def take(self, amount: float, now: float) -> None:
        """Take, into debt if need be."""
        self._level = self.level(now) - amount

    def give_back(self, amount: float, now: float) -> None:
        """Return what was taken for something that did not come about."""
        self._level = min(self.per_minute, self.level(now) + amount)
