"""Supervision: long-lived tasks with names, restart policies and an orderly end."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog
import trio
from attrs import Factory, define, field, frozen

from llmos.errors import LlmosError
from llmos.ipc.restart_budget import RestartBudget


class RestartPolicy(enum.Enum):
    """What follows when a child raises. One that returns has done its work and is never restarted."""

    NEVER = "never"  # its failure is its supervisor's
    ON_FAILURE = "on_failure"  # started again, within the limits of its spec


class ChildState(enum.Enum):
    """Where a child is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"  # failed, waiting to be started again
    DONE = "done"  # returned, or was stopped
    FAILED = "failed"  # raised and will not be started again


class Runnable(Protocol):
    """The `run` of a child, as `trio.Nursery.start` wants it."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[object]:
        """Run once; call `task_status.started(value)` when ready."""


class ChildFailed(LlmosError):
    """A child failed for good; its own exception is the cause. Raised out of the supervisor's block."""

    def __init__(self, name: str, num_restarts: int, cause: Exception) -> None:
        super().__init__(f"{name} failed after {num_restarts} restarts: {cause!r}")
        self.__cause__ = cause
        self.name = name
        self.num_restarts = num_restarts


@frozen(kw_only=True)
class ChildSpec:
    """How one child is run, restarted and stopped."""

    name: str
    run: Runnable
    stop: Callable[[], None] | None = None  # asks for an orderly end; None: cancelling is orderly enough
    policy: RestartPolicy = RestartPolicy.NEVER
    max_restarts: int = 3  # within window_seconds; one more failure is final
    window_seconds: float = 60.0
    backoff_seconds: float = 0.1  # before the first restart in a window; doubles with each further one
    max_backoff_seconds: float = 10.0
    grace_seconds: float = 5.0  # from `stop` to being cancelled

    def restart_budget(self) -> RestartBudget:
        """A new one, as specified."""
        return RestartBudget(
            self.max_restarts, self.window_seconds, self.backoff_seconds, self.max_backoff_seconds
        )


@frozen
class ChildStatistics:
    """One child at one moment."""

    name: str
    state: ChildState
    num_restarts: int


@frozen
class SupervisorStatistics:
    """All children, in the order they were started."""

    children: tuple[ChildStatistics, ...]


@define(eq=False)
class _Child:
    spec: ChildSpec
    state: ChildState = ChildState.STARTING
    num_restarts: int = 0
    is_stopping: bool = False
    restarts: RestartBudget = field(
        init=False, default=Factory(lambda child: child.spec.restart_budget(), takes_self=True)
    )
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)


@define
class _StartedHook(trio.TaskStatus[Any]):
    """Passes `started` on, and marks the child as running."""

    inner: trio.TaskStatus[Any]
    child: _Child

    def started(self, value: Any = None) -> None:
        self.inner.started(value)
        self.child.state = ChildState.RUNNING
        # From here on only the supervisor ends the child, in its turn: a cancelled block must not tear down
        # everything at once. While it starts it is cancelled with whoever waits for it in `start`.
        self.child.scope.shield = True


@define(eq=False)
class Supervisor:
    """Runs named children; made by `open_supervisor`."""

    _nursery: trio.Nursery
    _body: trio.CancelScope
    _children: list[_Child] = field(init=False, factory=list)  # in start order
    _failure: BaseException | None = field(init=False, default=None)
    _log: structlog.stdlib.BoundLogger = field(init=False, factory=structlog.get_logger)

    async def start(self, spec: ChildSpec) -> Any:
        """Start a child and wait until it is ready. A checkpoint.

        Returns:
            What the child gave to `task_status.started`. A restarted child's value is dropped, so it should
            be something that outlives a restart, as an actor's mailbox does.

        Raises:
            ValueError: a child of this name is there already.
            Exception: whatever the child raised before it was ready; that is not retried.
        """
        if any(child.spec.name == spec.name for child in self._children):
            raise ValueError(f"a child named {spec.name} exists")
        child = _Child(spec)
        self._children.append(child)
        try:
            value = await self._nursery.start(self._supervise, child)
        except BaseException:
            self._children.remove(child)
            raise
        self._log.debug("child started", child=spec.name)
        return value

    async def _supervise(self, child: _Child, *, task_status: trio.TaskStatus[Any]) -> None:
        spec = child.spec
        try:
            with child.scope:
                status = task_status
                while True:
                    try:
                        await spec.run(task_status=_StartedHook(status, child))
                        break
                    except Exception as error:
                        if child.state is ChildState.STARTING and status is task_status:
                            raise  # to the caller of `start`
                        delay = self._restart_delay(child, error)
                        if delay is None:
                            break
                    child.state = ChildState.BACKOFF
                    await trio.sleep(delay)
                    child.num_restarts += 1
                    child.state = ChildState.STARTING
                    status = trio.TASK_STATUS_IGNORED
        except BaseException as error:  # KeyboardInterrupt and the like: ends everything, in order
            if child.state is ChildState.STARTING and status is task_status:
                raise
            self._fail(child, error)
        if child.state is not ChildState.FAILED:
            child.state = ChildState.DONE
        child.ended.set()

    def _restart_delay(self, child: _Child, error: Exception) -> float | None:
        """Seconds until the restart that this failure earns; None when it earns none."""
        spec = child.spec
        if child.is_stopping:
            self._log.warning("child failed while stopping", child=spec.name, exc_info=error)
            child.state = ChildState.FAILED
            return None
        delay = child.restarts.take() if spec.policy is RestartPolicy.ON_FAILURE else None
        if delay is None:
            self._fail(child, ChildFailed(spec.name, child.num_restarts, error))
            return None
        self._log.warning(
            "child failed, restarting", child=spec.name, delay_seconds=delay, restart=child.num_restarts + 1,
            exc_info=error,
        )  # fmt: skip
        return delay

    def _fail(self, child: _Child, failure: BaseException) -> None:
        child.state = ChildState.FAILED
        self._log.error("child failed", child=child.spec.name, exc_info=failure)
        if self._failure is None:
            self._failure = failure
        self._body.cancel()

    async def stop(self) -> None:
        """Stop the children one by one, the last started first, each within its grace. Idempotent.

        A checkpoint; to be called shielded. A child that handles its own cancellation slowly is waited for.
        """
        for child in reversed(self._children):
            child.is_stopping = True
            if child.spec.stop is None or child.state is ChildState.BACKOFF:
                child.scope.cancel()
            else:
                child.spec.stop()
            with trio.move_on_after(child.spec.grace_seconds):
                await child.ended.wait()
            if not child.ended.is_set():
                if not child.scope.cancel_called:
                    self._log.warning(
                        "child outlived its grace",
                        child=child.spec.name,
                        grace_seconds=child.spec.grace_seconds,
                    )
                child.scope.cancel()
                await child.ended.wait()
            self._log.debug("child stopped", child=child.spec.name)

    def statistics(self) -> SupervisorStatistics:
        """Name every child and its state."""
        return SupervisorStatistics(
            tuple(
                ChildStatistics(child.spec.name, child.state, child.num_restarts) for child in self._children
            )
        )


@asynccontextmanager
async def open_supervisor() -> AsyncIterator[Supervisor]:
    """Run a block with a supervisor; at its end, however it ends, the children are stopped in order.

    The block is cancelled when a child fails for good. Cancelling the block from outside stops the children
    in order too, which takes at most the sum of their graces and of what they do when cancelled.

    Raises:
        ChildFailed: a child failed for good.
        BaseException: what the block itself raised; in a group with the child's failure if both happened.
    """
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as body:
            supervisor = Supervisor(nursery, body)
            try:
                yield supervisor
            except Exception as caught:  # kept, so that it leaves as itself and not in the nursery's group
                error = caught
            finally:
                with trio.CancelScope(shield=True):
                    await supervisor.stop()
    failure = supervisor._failure
    if error is not None and failure is not None:
        raise BaseExceptionGroup("the block and a child failed", [error, failure])
    if error is not None:
        raise error
    if failure is not None:
        raise failure
