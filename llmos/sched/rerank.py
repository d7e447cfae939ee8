"""An experiment, not a way to serve: priorities that change at random, to see what context switches cost.

Evaluations of preemptive serving drive an engine with priorities that somebody else's fairness policy would
set, and change them often (FastSwitch, section 5). This policy draws them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Literal

import attrs

from llmos.sched.policy import Order, View, last_in_order

CHANCE_OF_CHANGE = 0.25  # of a conversation's priority, in a draw of pattern "markov"


@attrs.define(eq=False)
class Rerank:
    """Everybody gets a new priority once in so many steps; the first that fit into memory run, nobody else.

    A conversation is a process. With pattern "random" every draw is new for all; with "markov" each
    conversation keeps its priority from one draw to the next with a chance of 3 in 4. What is drawn depends
    on the seed, the number of the draw and the pid alone.

    Args:
        review_steps: between two draws; 25 or 50 in FastSwitch.
        seed: of what is drawn.
        pattern: how priorities change.
    """

    review_steps: int
    seed: int = 0
    pattern: Literal["random", "markov"] = "random"
    num_draws: int = 0
    _priorities: dict[int, float] = attrs.field(factory=dict, init=False)  # since the last draw, by pid
    name = "rerank"

    def order(self, nice: int, arrival: int, asked_at: float, deadline: float) -> Order:
        """See ResidencyPolicy. Priorities change while processes wait, so they are not in it."""
        return (arrival,)

    def standing(self, tenant: str) -> float:
        """See ResidencyPolicy. Tenants do not matter."""
        return 0.0

    def is_over_share(self, tenant: str) -> bool:
        """See ResidencyPolicy."""
        return False

    def admit(self, view: View) -> list[int]:
        """See ResidencyPolicy. The waiting by priority; nobody is skipped."""
        places, num_free = max(0, view.max_running - view.num_running), view.num_free_frames
        chosen: list[int] = []
        for candidate in itertools.islice(view.ranked(self._rank), places):
            num_free -= candidate.frames_needed
            if num_free < 0:
                break  # the rest is not looked at: a backlog is long
            chosen.append(candidate.pid)
        return chosen

    def victim(self, view: View, for_pid: int) -> int | None:
        """See ResidencyPolicy."""
        return last_in_order(view, for_pid, lambda candidate: self._rank(candidate.pid))

    def give_way(self, view: View) -> list[int]:
        """Draw new priorities; those that run and are no longer among the first that fit give way."""
        self.num_draws += 1
        self._priorities.clear()
        running = [candidate for crew in view.running.values() for candidate in crew]
        live = sorted([*view.waiting, *running], key=lambda candidate: self._rank(candidate.pid))
        num_frames = view.num_free_frames + sum(candidate.frames_held for candidate in live)
        sizes = [candidate.frames_held + candidate.frames_needed for candidate in live]
        num_fit = _num_that_fit(sizes, num_frames, view.max_running)
        return [candidate.pid for candidate in live[num_fit:] if candidate.is_running]

    def priority(self, pid: int) -> float:
        """A process's priority since the last draw, from 0, the first, to 1."""
        found = self._priorities.get(pid)  # asked for at each admission, of everybody who waits
        if found is None:
            draw = self.num_draws
            if self.pattern == "markov":
                while draw and self._chance("change", draw, pid) >= CHANCE_OF_CHANGE:
                    draw -= 1
            found = self._priorities[pid] = self._chance("priority", draw, pid)
        return found

    def _chance(self, what: str, draw: int, pid: int) -> float:
        return random.Random(f"{self.seed}/{what}/{draw}/{pid}").random()

    def _rank(self, pid: int) -> Order:
        return (self.priority(pid), pid)


def _num_that_fit(sizes: Sequence[int], num_frames: int, places: int) -> int:
    """How many of the first fit together, in so many frames and places."""
    ends = itertools.accumulate(sizes[:places])
    return sum(1 for end in ends if end <= num_frames)
