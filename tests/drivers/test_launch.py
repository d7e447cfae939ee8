"""Recorded work: what becomes of a step whose graph there is no memory for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attrs import frozen

from drivers.model.launch import GraphLauncher


@frozen
class CalledGraph:
    """A graph whose replay makes the calls again."""

    replay: Callable[[], None]


def test_a_graph_without_memory_is_no_fault_of_a_step() -> None:
    """The step was launched by then. Its key is called from then on; other keys and errors are as ever."""
    errors: list[Exception] = []
    recorded: list[Callable[[], None]] = []

    def record(work: Callable[[], None]) -> CalledGraph:
        recorded.append(work)
        if errors:
            try:
                raise errors[0]
            except torch.OutOfMemoryError:  # what ends a recording says so in its own words
                raise RuntimeError("the capture was invalidated")  # noqa: B904
        return CalledGraph(work)

    launcher = GraphLauncher(torch.device("cpu"), record)
    total = torch.zeros(1, dtype=torch.int64)

    def work() -> None:
        total.add_(1)

    errors.append(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    for _ in range(3):
        launcher.run("large", work, (total,))
    assert (int(total), len(recorded), launcher.num_recorded) == (3, 1, 0)
    errors.clear()
    for key in ("large", "small", "small"):
        launcher.run(key, work, (total,))
    assert (int(total), len(recorded), launcher.num_recorded) == (6, 2, 1)
    errors.append(RuntimeError("CUDA error: operation not permitted when stream is capturing"))
    with pytest.raises(RuntimeError, match="not permitted"):
        launcher.run("other", work, (total,))


def test_a_graph_that_moved_and_has_no_memory_is_not_replayed() -> None:
    """The old one is about memory that is somebody else's by now."""
    is_full = False

    def record(work: Callable[[], None]) -> CalledGraph:
        if is_full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return CalledGraph(work)

    launcher = GraphLauncher(torch.device("cpu"), record)
    old, new = (torch.zeros(1, dtype=torch.int64) for _ in range(2))
    launcher.run("key", lambda: old.add_(1), (old,))
    is_full = True
    for _ in range(2):
        launcher.run("key", lambda: new.add_(1), (new,))
    launcher.run("key", lambda: old.add_(1), (old,))
    assert (int(old), int(new), launcher.num_recorded) == (2, 2, 0)
