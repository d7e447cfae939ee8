"""What a step has come to: rows that are forgotten leave nothing, and touch nobody else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drivers.step_results import StepResults
from llmos.device import RowFault, StepDone, TokenLogprobs

NUM_ROWS = 4
LOGPROBS = TokenLogprobs(-1.0, (), (), 0)
kinds = st.sets(st.sampled_from(["tokens", "logprobs", "mus", "scores", "vectors", "faults"]))


def fill(results: StepResults, row: int, kind: str) -> None:
    """A row's result of a kind, its own."""
    values = {
        "tokens": 10 + row, "logprobs": LOGPROBS, "mus": float(row), "scores": (LOGPROBS,) * (row + 1),
        "vectors": bytes([row]), "faults": f"fault {row}",
    }  # fmt: skip
    getattr(results, kind)[row] = values[kind]


@given(st.lists(kinds, min_size=NUM_ROWS, max_size=NUM_ROWS), st.sets(st.integers(0, NUM_ROWS - 1)))
def test_what_is_forgotten_was_never_there(found: list[set[str]], forgotten: set[int]) -> None:
    """The answer is that of a step in which these rows had found nothing."""

    def answer(rows: set[int]) -> tuple[StepResults, StepDone]:
        results = StepResults(NUM_ROWS)
        for row in rows:
            for kind in found[row]:
                fill(results, row, kind)
        return results, results.done(1, 0.5)

    results, whole = answer(set(range(NUM_ROWS)))
    assert whole.faults == tuple(RowFault(i, f"fault {i}") for i in range(NUM_ROWS) if "faults" in found[i])
    results.forget(forgotten)
    assert results.done(1, 0.5) == answer(set(range(NUM_ROWS)) - forgotten)[1]
