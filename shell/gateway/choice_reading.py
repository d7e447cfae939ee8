"""The reading of one choice: what its process outputs is dealt with as it comes, without waking a task.

Only what must be waited for comes to a task: the end, a client that is slower than its process, a process
that is to be ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from shell.gateway.choice import Choice, Delta
from shell.gateway.vllm_metrics import RequestMetrics
from syscalls.process import Output


class Sink(Protocol):
    """Where the deltas of a request's choices go."""

    def put(self, choice: Choice, delta: Delta) -> bool:
        """Take a delta; False: `drain` comes before the next is read."""
        ...

    def put_text(self, choice: Choice, text: str, output: Output) -> bool:
        """Take what `put` would take as `Delta.of_text`, where there is text."""
        ...

    async def drain(self) -> None:
        """Wait until what was put has been taken further."""
        ...


@attrs.define(eq=False, kw_only=True)
class ChoiceReading:
    """A choice, how far its process was read, and where it goes. Times are seconds on the run's clock."""

    choice: Choice
    sink: Sink
    on_first_token: Callable[[float], None]  # told the time of each choice's first one
    on_tokens: Callable[[float, int], None]  # told the time since the last read, and how many came
    account: RequestMetrics | None  # vLLM's metrics of the process
    max_predict_seconds: float | None  # from the first token on, once there is a line; None: no limit
    is_scored: bool = False  # the prompt's scores come first: its deltas are for the task
    left: Delta | None = None  # fed, and not put yet: it is for the task
    _clock: trio.abc.Clock = attrs.field(factory=trio.lowlevel.current_clock)
    _is_simple: bool = attrs.field(init=False)  # an output that has text and no end is never for the task
    _last_read: float | None = None
    _first_at: float | None = None  # when its first token was read

    @_is_simple.default
    def _find_simple(self) -> bool:
        return not self.is_scored and self.max_predict_seconds is None

    def take(self, output: Output) -> bool:
        """Deal with an output that is not the last; False: the task is wanted."""
        if self._is_simple and (text := self.choice.take_text(output)) is not None:
            self._note_tokens(1)
            if text:
                return self.sink.put_text(self.choice, text, output)
            return self.sink.put(self.choice, Delta.of_text("", output))
        delta, choice = self.feed(output), self.choice
        if choice.is_finished or self.is_scored or self.is_overdue:
            self.left = delta
            return False
        return self.sink.put(choice, delta)

    def feed(self, output: Output) -> Delta:
        """Take an output into the choice and the metrics."""
        delta = self.choice.feed(output)
        if output.tokens:
            self._note_tokens(len(output.tokens))
        return delta

    def _note_tokens(self, num_tokens: int) -> None:
        now = self._clock.current_time()
        if self._last_read is None:
            self._first_at = now
            self.on_first_token(now)
        else:
            self.on_tokens(now - self._last_read, num_tokens)
        self._last_read = now
        if self.account is not None:
            self.account.feed(now, num_tokens)

    @property
    def is_overdue(self) -> bool:
        """True when the choice has been output for longer than it may, and has a line."""
        limit = self.max_predict_seconds
        return (
            limit is not None
            and self._first_at is not None
            and self.choice.has_newline
            and trio.current_time() - self._first_at > limit
        )
