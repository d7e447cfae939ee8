"""Courtesy: how far prompts may stretch a step in which others decode, while some tenant is over its share.

Whoever decodes waits for the whole step. A prompt of a tenant that is over its share stretches such a step a
little, always. One of a tenant that is not, is computed as fast as the step's target allows, and the others
of its kind wait for it: seldom enough that the 99th percentile of their waits does not show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs

from llmos.cost import StepWork
from llmos.params import COURTEOUS_SECONDS, COURTEOUS_STRETCH
from llmos.proc.pcb import Process

IsOverShare = Callable[[str], bool]  # of a tenant: it runs much more than its share
Predict = Callable[[StepWork], float]  # seconds that a step will take; more for more work, or as many

TOKENS_FOR_A_LONG_WAIT = 104  # of modest tenants: one in so many may come late, which is less than 1 %
MAX_LONG_WAITS = 8.0  # that are saved up: a burst of prompts after a quiet time
MAX_STEPS_HELD = 3  # in a row, that rows of a tenant over its share sit out for another one's prompt


@attrs.define(eq=False)
class Courtesy:
    """Counts how often tenants within their share have had to wait for a long step, over many steps.

    Args:
        is_over_share: of a tenant. Nobody: no step is anybody's business, and all methods allow everything.
    """

    is_over_share: IsOverShare = lambda tenant: False
    num_modest: int = attrs.field(default=0, init=False)  # rows of this step that prompts should mind
    _over: set[str] = attrs.field(factory=set, init=False)  # tenants of this step that are over their share
    _long_waits: float = attrs.field(default=0.0, init=False)  # that may still be asked for
    _num_steps_held: int = attrs.field(default=0, init=False)  # in a row

    def begin(self, decodes: Sequence[Process], prompts: Iterable[Process]) -> None:
        """Look at those who want part in a step. Mutates: each modest row earns some of a long wait."""
        tenants = {process.tenant for process in decodes}
        tenants.update([process.tenant for process in prompts])
        self._over = set(filter(self.is_over_share, tenants)) if len(tenants) > 1 else set()
        self.num_modest = sum([p.tenant not in self._over for p in decodes]) if self._over else 0
        earned = self.num_modest / TOKENS_FOR_A_LONG_WAIT
        self._long_waits = min(MAX_LONG_WAITS, self._long_waits + earned)

    def is_over(self, process: Process) -> bool:
        """Is it of a tenant that is over its share?"""
        return process.tenant in self._over

    def polite_seconds(self, decode_seconds: float) -> float:
        """How long a step may take that nobody calls long, when its decodes alone take so long."""
        return decode_seconds + max(COURTEOUS_STRETCH * decode_seconds, COURTEOUS_SECONDS)

    @property
    def may_be_long(self) -> bool:
        """May the rows that prompts should mind wait for a long step?"""
        return self._long_waits >= self.num_modest

    def note_long(self) -> None:
        """The step will be long: they have waited. Mutates."""
        self._long_waits -= self.num_modest

    def hold_back(
        self, decodes: Sequence[Process], prompt: Process, predict: Predict, most_seconds: float
    ) -> set[int]:
        """Whose rows sit this step out, so that a prompt takes fewer steps, none longer than `most_seconds`.

        They are of tenants over their share, the last in order first, and no more than are in the way. That
        is for short prompts: nobody sits out more than MAX_STEPS_HELD steps in a row. Mutates.

        Returns:
            Their pids.
        """
        held: set[int] = set()
        if not self.is_over(prompt) and self._num_steps_held < MAX_STEPS_HELD:
            modest, everybody = StepWork(), StepWork()
            for process in decodes:
                everybody = everybody.with_row(process.num_scheduled, 1)
                if not self.is_over(process):
                    modest = modest.with_row(process.num_scheduled, 1)
            start, wanted = prompt.num_scheduled, prompt.num_uncomputed
            fewest = _num_steps(wanted, most_tokens(modest, start, wanted, predict, most_seconds))
            if fewest <= MAX_STEPS_HELD - self._num_steps_held and fewest < _num_steps(
                wanted, most_tokens(everybody, start, wanted, predict, most_seconds)
            ):
                work = modest.with_row(start, -(-wanted // fewest))
                for process in filter(self.is_over, decodes):
                    more = work.with_row(process.num_scheduled, 1)
                    if predict(more) <= most_seconds:
                        work = more
                    else:
                        held.add(process.pid)
        self._num_steps_held = self._num_steps_held + 1 if held else 0
        return held


def most_tokens(work: StepWork, start: int, wanted: int, predict: Predict, most_seconds: float) -> int:
    """The most tokens of one more row, up to `wanted`, with which the step does not take longer than that."""
    if predict(work.with_row(start, wanted)) <= most_seconds:
        return wanted
    fits, too_many = 0, wanted
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if predict(work.with_row(start, middle)) <= most_seconds:
            fits = middle
        else:
            too_many = middle
    return fits


def _num_steps(num_tokens: int, a_step: int) -> int:
    return -(-num_tokens // max(1, a_step))  # a step takes one in any case
