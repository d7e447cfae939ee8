"""The policy that draws priorities: it keeps what fits, by priority, and repeats itself from its seed."""

from __future__ import annotations

from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.sched.accounts import Accounts
from llmos.sched.policy import View
from llmos.sched.rerank import Rerank
from tests.sched.small_engine import SmallEngine

PATTERNS = st.sampled_from(["random", "markov"])
NOBODY = View((), lambda rank: (), {}, {}, lambda tenant: 0, (), 0, 0, 8)


def make_engine(
    seed: int, pattern: Literal["random", "markov"], num_frames: int, max_running: int
) -> SmallEngine:
    """An engine that draws priorities every five steps."""
    return SmallEngine(Rerank(5, seed, pattern), Accounts(), num_frames, max_running)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 9),
    pattern=PATTERNS,
    num_frames=st.integers(150, 400),
    max_running=st.integers(1, 8),
    shapes=st.lists(st.tuples(st.integers(1, 60), st.integers(20, 80)), min_size=1, max_size=12),
)
def test_the_first_that_fit_run(
    seed: int, pattern: str, num_frames: int, max_running: int, shapes: list[tuple[int, int]]
) -> None:
    """After a draw and an admission those run that come first by priority, and the first that fit are in it.

    There may be one more: with the next token of each that runs it would not have fitted.
    """
    engine = make_engine(seed, pattern, num_frames, max_running)
    for prompt, output in shapes:
        engine.spawn("a", prompt, output)
    for _ in range(60):
        engine.step()
        if engine.num_steps % 5:
            continue
        engine.review()
        kept = {process.pid for process in engine.queue.running}
        engine.admit()
        ranked = sorted(engine.queue.members.values(), key=lambda p: (engine.policy.priority(p.pid), p.pid))
        expected, num_used = set(), 0
        for process in ranked[:max_running]:
            num_used += len(process.tokens) + 1
            if num_used > num_frames:
                break
            expected.add(process.pid)
        running = {process.pid for process in engine.queue.running}
        assert kept <= expected <= running
        assert running == {process.pid for process in ranked[: len(running)]}


@settings(max_examples=10)
@given(seed=st.integers(0, 9), pattern=PATTERNS)
def test_a_seed_is_a_history(seed: int, pattern: str) -> None:
    """The same seed preempts the same processes at the same steps; everybody ends in any case."""
    histories = []
    for _ in range(2):
        engine = make_engine(seed, pattern, 200, 4)
        processes = [engine.spawn("a", 10 + i, 40) for i in range(12)]
        history = []
        while engine.queue.members:
            engine.step()
            history.append([process.pid for process in engine.queue.running])
        histories.append(history)
        assert all(len(process.output) == 40 for process in processes)
        assert engine.num_preemptions > 0
    assert histories[0] == histories[1]


def test_markov_keeps_most_priorities() -> None:
    """Of a thousand conversations three in four keep their priority in a draw; at random nobody does."""
    for pattern, least, most in (("random", 0, 0), ("markov", 700, 800)):
        policy = Rerank(1, 7, pattern, num_draws=5)
        before = [policy.priority(pid) for pid in range(1000)]
        policy.give_way(NOBODY)
        kept = sum(policy.priority(pid) == before[pid] for pid in range(1000))
        assert least <= kept <= most
        assert all(0 <= priority < 1 for priority in before)
