"""What a simulated driver has to say, and when: its answers in the order of time, until it is dead."""

from __future__ import annotations

import heapq
import math

import attrs
import trio

from llmos.device import DriverLost, FromDriver


@attrs.define(eq=False)
class SimOutbox:
    """Answers that are due at times on the run's clock.

    Args:
        name: of the device, for who asks it when it is dead.
    """

    name: str
    _answers: list[tuple[float, int, FromDriver]] = attrs.field(factory=list, init=False)  # a heap, by time
    _num_answers: int = attrs.field(default=0, init=False)
    _dead_at: float = attrs.field(default=math.inf, init=False)
    _why_dead: str = attrs.field(default="", init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    def post(self, due: float, message: FromDriver) -> None:
        """Have an answer come at a time; of those that are due together, the one that was posted first."""
        self._num_answers += 1
        heapq.heappush(self._answers, (due, self._num_answers, message))
        self._changed.set()

    def die(self, when: float, why: str) -> None:
        """Say nothing from a time on, unless that was to be sooner anyway."""
        if when < self._dead_at:
            self._dead_at, self._why_dead = when, why
            self._changed.set()

    def check_alive(self) -> None:
        """Raise DriverLost when the driver is dead."""
        if trio.current_time() >= self._dead_at:
            raise DriverLost(f"{self.name}: {self._why_dead}")

    async def receive(self) -> FromDriver:
        """Wait for the next answer. Raises DriverLost when the driver is dead and its answers are read."""
        await trio.lowlevel.checkpoint()
        while True:
            due = self._answers[0][0] if self._answers else math.inf
            if due <= trio.current_time() and due <= self._dead_at:
                return heapq.heappop(self._answers)[-1]
            self.check_alive()
            self._changed = trio.Event()
            with trio.move_on_at(min(due, self._dead_at)):
                await self._changed.wait()
