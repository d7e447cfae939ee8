"""Supervision on a virtual clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from llmos.ipc.supervisor import ChildFailed, ChildSpec, ChildState, RestartPolicy, open_supervisor

Status = trio.TaskStatus[Any]


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


class Child:
    """Runs until told to stop; each run may be given a time after which it raises instead."""

    def __init__(
        self, name: str, journal: list[str], lives: tuple[float, ...] = (), farewell: float = 0
    ) -> None:
        self.name = name
        self.journal = journal
        self.lives = list(lives)
        self.farewell = farewell  # seconds that an orderly end takes
        self.stopping = trio.Event()
        self.start_times: list[float] = []

    async def run(self, *, task_status: Status) -> None:
        self.start_times.append(trio.current_time())
        task_status.started(self.name)
        try:
            if self.lives:
                await trio.sleep(self.lives.pop(0))
                raise OSError(f"{self.name} broke")
            await self.stopping.wait()
            await trio.sleep(self.farewell)
            self.journal.append(f"{self.name} stopped")
        except trio.Cancelled:
            self.journal.append(f"{self.name} cancelled")
            raise

    def spec(self, **settings: Any) -> ChildSpec:
        return ChildSpec(name=self.name, run=self.run, stop=self.stopping.set, **settings)


async def test_children_stop_in_reverse_order(autojump_clock: trio.testing.MockClock, log: list[Any]) -> None:
    """Each child ends in an orderly way before the one started before it is asked to."""
    journal: list[str] = []
    start = trio.current_time()
    async with open_supervisor() as supervisor:
        for name, farewell in [("a", 1.0), ("b", 2.0), ("c", 3.0)]:
            assert await supervisor.start(Child(name, journal, farewell=farewell).spec()) == name
        assert [child.state for child in supervisor.statistics().children] == [ChildState.RUNNING] * 3
    assert journal == ["c stopped", "b stopped", "a stopped"]
    assert trio.current_time() - start == 6.0
    assert [child.state for child in supervisor.statistics().children] == [ChildState.DONE] * 3


async def test_a_child_that_outlives_its_grace_is_cancelled(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Only the slow child is cancelled, after its own grace, and the log says so."""
    journal: list[str] = []
    start = trio.current_time()
    async with open_supervisor() as supervisor:
        await supervisor.start(Child("quick", journal, farewell=1.0).spec())
        await supervisor.start(Child("slow", journal, farewell=100.0).spec(grace_seconds=7.0))
    assert journal == ["slow cancelled", "quick stopped"]
    assert trio.current_time() - start == 8.0
    assert [entry["child"] for entry in log if entry["event"] == "child outlived its grace"] == ["slow"]


async def test_an_outer_cancellation_still_stops_in_order(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """An interrupt ends the block at once and the children one after the other."""
    journal: list[str] = []
    with trio.move_on_after(5) as scope:
        async with open_supervisor() as supervisor:
            for name in "ab":
                await supervisor.start(Child(name, journal, farewell=1.0).spec())
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert journal == ["b stopped", "a stopped"]


async def test_a_failed_child_is_restarted_with_backoff(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Delays double within the window, are capped, and start over once the failures are old."""
    child = Child("shaky", [], lives=(10.0, 0.0, 0.0, 60.0))
    start = trio.current_time()
    async with open_supervisor() as supervisor:
        await supervisor.start(
            child.spec(
                policy=RestartPolicy.ON_FAILURE, max_restarts=3, window_seconds=50.0,
                backoff_seconds=1.0, max_backoff_seconds=3.0,
            )
        )  # fmt: skip
        await trio.sleep(100)
        (statistics,) = supervisor.statistics().children
        assert (statistics.state, statistics.num_restarts) == (ChildState.RUNNING, 4)
    # Fails at 10, 11, 13 and 76.
    assert [time - start for time in child.start_times] == [0.0, 11.0, 13.0, 16.0, 77.0]


async def test_too_many_failures_end_everything_in_order(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """When restarts run out the block is cancelled, the others stop, and the cause is known."""
    journal: list[str] = []
    hopeless = Child("hopeless", journal, lives=(1.0,) * 9)
    states: list[ChildState] = []

    async def supervise() -> None:
        async with open_supervisor() as supervisor:
            await supervisor.start(Child("a", journal).spec())
            await supervisor.start(hopeless.spec(policy=RestartPolicy.ON_FAILURE, max_restarts=2))
            await supervisor.start(Child("b", journal).spec())
            try:
                await trio.sleep_forever()
            finally:
                states.extend(child.state for child in supervisor.statistics().children)

    with pytest.raises(ChildFailed, match="hopeless failed after 2 restarts") as caught:
        await supervise()
    assert isinstance(caught.value.__cause__, OSError)
    assert len(hopeless.start_times) == 3
    assert journal == ["b stopped", "a stopped"]
    assert states == [ChildState.RUNNING, ChildState.FAILED, ChildState.RUNNING]


async def test_without_a_restart_policy_the_first_failure_is_final(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """NEVER means never."""
    child = Child("once", [], lives=(1.0,))

    async def supervise() -> None:
        async with open_supervisor() as supervisor:
            await supervisor.start(child.spec())
            await trio.sleep_forever()

    with pytest.raises(ChildFailed, match="once failed after 0 restarts"):
        await supervise()
    assert len(child.start_times) == 1


async def test_a_child_that_returns_is_done(autojump_clock: trio.testing.MockClock, log: list[Any]) -> None:
    """An orderly end is not a failure: nothing is restarted and the block goes on."""
    child = Child("short", [])
    child.stopping.set()
    async with open_supervisor() as supervisor:
        await supervisor.start(child.spec(policy=RestartPolicy.ON_FAILURE))
        await trio.sleep(100)
        assert supervisor.statistics().children[0].state is ChildState.DONE
    assert len(child.start_times) == 1


async def test_stopping_does_not_wait_for_a_backoff(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """A child that waits for its restart is simply not restarted."""
    child = Child("shaky", [], lives=(1.0,))
    start = trio.current_time()
    async with open_supervisor() as supervisor:
        await supervisor.start(
            child.spec(policy=RestartPolicy.ON_FAILURE, backoff_seconds=50.0, max_backoff_seconds=50.0)
        )
        await trio.sleep(2)
        assert supervisor.statistics().children[0].state is ChildState.BACKOFF
    assert trio.current_time() - start == 2.0
    assert len(child.start_times) == 1


async def test_a_failure_while_stopping_is_only_logged(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """A child that breaks on its way out keeps nobody from leaving."""
    stopping = trio.Event()

    async def run(*, task_status: Status) -> None:
        task_status.started()
        await stopping.wait()
        raise OSError("could not flush")

    async with open_supervisor() as supervisor:
        await supervisor.start(ChildSpec(name="clumsy", run=run, stop=stopping.set))
    assert supervisor.statistics().children[0].state is ChildState.FAILED
    assert "child failed while stopping" in [entry["event"] for entry in log]


def failing(error: Exception) -> Callable[..., Awaitable[None]]:
    async def run(*, task_status: Status) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return run


async def test_a_child_that_cannot_start_fails_its_starter_alone(log: list[Any]) -> None:
    """The exception goes to the caller of `start`, is not retried, and leaves no trace."""
    error = OSError("no device")
    async with open_supervisor() as supervisor:
        with pytest.raises(OSError, match="no device") as caught:
            await supervisor.start(
                ChildSpec(name="driver", run=failing(error), policy=RestartPolicy.ON_FAILURE)
            )
        assert caught.value is error
        assert supervisor.statistics().children == ()
        child = Child("driver", [])
        await supervisor.start(child.spec())
        with pytest.raises(ValueError, match="driver exists"):
            await supervisor.start(child.spec())


async def test_a_slow_start_is_cancelled_with_its_starter(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """A deadline around `start` ends a child that never gets ready."""

    async def run(*, task_status: Status) -> None:
        await trio.sleep_forever()

    start = trio.current_time()
    async with open_supervisor() as supervisor:
        with trio.move_on_after(3) as scope:
            await supervisor.start(ChildSpec(name="stuck", run=run))
        assert scope.cancelled_caught
    assert trio.current_time() - start == 3.0


async def test_the_blocks_own_error_leaves_as_itself(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """An exception of the block is not wrapped, and the children still stop in order."""
    journal: list[str] = []

    async def supervise() -> None:
        async with open_supervisor() as supervisor:
            await supervisor.start(Child("a", journal).spec())
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await supervise()
    assert journal == ["a stopped"]
