"""How often something that dies is started again, and after which pause."""

from __future__ import annotations

from collections import deque

import attrs
import trio


@attrs.define(eq=False)
class RestartBudget:
    """Restarts within a sliding window of time; the pause before each is twice that before the last one."""

    max_restarts: int
    window_seconds: float
    pause_seconds: float  # before the first restart in a window
    max_pause_seconds: float
    _deaths: deque[float] = attrs.field(init=False, factory=deque)  # in the window

    def take(self) -> float | None:
        """Account for a death now.

        Returns:
            Seconds to wait before the restart; None: the budget of this window is used up.
        """
        now = trio.current_time()
        while self._deaths and self._deaths[0] <= now - self.window_seconds:
            self._deaths.popleft()
        num_recent = len(self._deaths)
        if num_recent >= self.max_restarts:
            return None
        self._deaths.append(now)
        return min(self.pause_seconds * 2.0**num_recent, self.max_pause_seconds)
