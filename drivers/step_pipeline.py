"""Steps of a session that were launched and are not answered: at most two, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import attrs

from drivers.fence_waiter import FenceWaiter
from drivers.model.step_queue import StepQueue
from drivers.step_results import StepResults
from drivers.step_work import StepWork
from llmos.device import Row, Step
from native.sampling import Choice, Draw

__all__ = ["LaunchedStep", "StepPipeline"]


@attrs.define(eq=False)
class LaunchedStep:
    """A step that a device is at, or was."""

    step: Step
    rows: dict[int, Row]  # good ones, by index, without a token where only the device knows it
    work: StepWork  # of those
    results: StepResults  # with faults that were found before it was launched
    began_at: float  # by time.perf_counter
    released: set[int] = attrs.field(factory=set)  # spaces that are somebody else's since
    coming: dict[int, int] = attrs.field(init=False)  # for spaces that get a token: its position
    looking_back: frozenset[int] = attrs.field(init=False)  # those whose next draw depends on it

    def __attrs_post_init__(self) -> None:
        """Ask each space's state once."""
        states = zip(self.work.wanted, self.work.states, strict=True)
        self.coming = dict(self.work.wanted)
        self.looking_back = frozenset(
            asid for (asid, _position), state in states if state is not None and state.looks_back
        )


class StepPipeline:
    """Launches steps behind each other, and says whose tokens the device has while the host has not.

    Args:
        queue: of the session's model.
    """

    def __init__(self, queue: StepQueue) -> None:
        self._queue = queue
        self._waiter = FenceWaiter()
        self._steps: deque[LaunchedStep] = deque()
        self._num_collected = 0
        self._ended_at = 0.0  # the last step that was collected
        self.num_drawn_late = 0  # steps whose forward pass was launched before their draws were known
        self.num_fed = 0  # rows that were launched before the host knew their token

    @property
    def num_in_flight(self) -> int:
        """Steps launched and not collected."""
        return len(self._steps)

    @property
    def is_ready(self) -> bool:
        """Whether the oldest step is over: `collect` will not wait."""
        return bool(self._steps) and self._waiter.count_passed() > self._num_collected

    def fileno(self) -> int:
        """A descriptor that polls as readable when a step is over."""
        return self._waiter.fileno()

    @property
    def is_full(self) -> bool:
        """Whether a step has to be collected before another one can be launched."""
        return self._queue.is_full

    def draws_late(self, rows: Iterable[Row]) -> bool:
        """Whether a token in flight has to be known, and counted, before these rows can be drawn for."""
        asids = {row.asid for row in rows}
        return not all(step.looking_back.isdisjoint(asids) for step in self._steps)

    def is_coming(self, asid: int, position: int) -> bool:
        """Whether a step in flight samples the token of a space at a position."""
        return any(step.coming.get(asid) == position for step in self._steps)

    def release(self, asid: int) -> None:
        """A space is closed: what is in flight for it is nobody's."""
        for step in self._steps:
            step.released.add(asid)
            step.coming.pop(asid, None)

    def launch(
        self,
        step: Step,
        rows: dict[int, Row],
        results: StepResults,
        began_at: float,
        prepare: Callable[[], StepWork],
    ) -> None:
        """Launch a step.

        Args:
            step: as it came.
            rows: its good ones, by index.
            results: with faults that were found by now.
            began_at: by time.perf_counter.
            prepare: what is drawn for the rows. Where draws are late it is called when the forward pass was
                launched, and collects the steps before.

        Raises:
            Exception: whatever the model raises; then nothing was launched that counts.
        """
        is_late = self.draws_late(rows.values())
        work = None if is_late else prepare()

        def draw() -> Sequence[Draw | None]:
            nonlocal work
            work = prepare()
            return work.draws

        self._waiter.add(self._queue.launch(list(rows.values()), draw if work is None else work.draws))
        assert work is not None
        self._steps.append(LaunchedStep(step, rows, work, results, began_at))
        self.num_fed += sum(not row.tokens for row in rows.values())
        self.num_drawn_late += is_late

    def collect(self) -> tuple[LaunchedStep, list[Choice], float]:
        """Wait for the oldest step.

        Returns:
            The step, a choice for each of its rows of logits, and the seconds that it took the device: from
            its launch, or the end of the step before if that is later.

        Raises:
            Exception: the device is beyond use.
        """
        step = self._steps[0]
        choices = self._queue.collect()
        self._steps.popleft()
        self._num_collected += 1
        ended_at = self._waiter.wait()
        seconds, self._ended_at = ended_at - max(step.began_at, self._ended_at), ended_at
        return step, choices, seconds

    def fail_fed_rows(self, asids: set[int], explain: Callable[[Row], str]) -> None:
        """Spaces have no token: rows in flight that were fed with one have computed junk."""
        for step in self._steps:
            for index, row in step.rows.items():
                if not row.tokens and row.asid in asids - step.released:
                    step.results.faults[index] = explain(row)

    def close(self) -> None:
        """Wait for what is in flight, and forget it. Idempotent."""
        self._steps.clear()
        self._waiter.close()
