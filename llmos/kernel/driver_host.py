"""The host of one driver: starts it, loads the model, reads its answers, and starts it again when it dies."""

from __future__ import annotations

import contextlib
import enum
import math
import time
from collections.abc import Awaitable, Callable

import trio

from llmos.device import (
    Compiled,
    CopyDone,
    DriverLink,
    DriverLost,
    FromDriver,
    Hello,
    Load,
    Loaded,
    Progress,
    StepDone,
)  # fmt: skip
from llmos.ipc.mailbox import MailboxClosed
from llmos.ipc.restart_budget import RestartBudget
from llmos.kernel.bring_up import LoadRefused, load_model, receive_hello, record_loaded
from llmos.kernel.events import EventLog
from llmos.kernel.night import Night
from llmos.params import (
    DRIVER_RESTART_SECONDS,
    DRIVER_RESTART_WINDOW_SECONDS,
    MAX_DRIVER_RESTARTS,
)
from llmos.sched.core import Core
from llmos.sched.messages import (
    CopyFinished,
    DriverDown,
    DriverUp,
    FromDevice,
    GrammarFinished,
    StepFinished,
    Vacate,
)
from syscalls.errno import Errno, SyscallError

OpenLink = Callable[[], Awaitable[DriverLink]]


class HostState(enum.Enum):
    """What `lsdev` shows."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    SLEEPING = "sleeping"
    EMPTY = "empty"
    FAILED = "failed"


class DriverHost:
    """Owns the line to one driver, and knows why there is none.

    A device has a driver, or is getting one; or it has a Night (asleep, or empty); or it has failed.

    Args:
        core: told when a driver is up or down, and what it answers.
        open_link: starts a driver and returns the line to it.
        load: what the driver is told to load; None: nothing, until `load`.
        step_timeout_seconds: a step that takes longer means that the driver hangs; it is killed.
        events: the kernel's event ring.
        on_progress: told of load progress.
        encodes: the device only makes vectors.
    """

    def __init__(
        self,
        core: Core,
        open_link: OpenLink | None,
        load: Load | None,
        step_timeout_seconds: float,
        events: EventLog,
        on_progress: Callable[[str, Progress], None] | None = None,
        *,
        encodes: bool = False,
    ) -> None:
        self.core = core
        self.encodes = encodes
        self.state = HostState.STARTING
        self.message = ""
        self.hello: Hello | None = None
        self.num_restarts = 0
        self.loaded_at = 0  # when its model served for the first time, in seconds since the epoch
        self.is_leaving = False  # its model is being unloaded: nothing new is placed here
        self._open_link = open_link
        self._load = load
        self._step_timeout = step_timeout_seconds
        self._events = events
        self._on_progress = on_progress
        self._restarts = RestartBudget(
            MAX_DRIVER_RESTARTS, DRIVER_RESTART_WINDOW_SECONDS, DRIVER_RESTART_SECONDS, math.inf
        )
        self._has_started = False  # `run` has said so
        self._has_served = False  # with the model that it is told to load
        self._night: Night | None = None  # it is to sleep, or does
        self._bedtime = trio.Event()

    @property
    def name(self) -> str:
        """Of the device."""
        return self.core.name

    @property
    def model_name(self) -> str:
        """Of what it serves, or will; "" for nothing."""
        return self._load.name if self._load is not None and not self.is_leaving else ""

    @property
    def is_asleep(self) -> bool:
        """True while it has no driver, because somebody asked for that."""
        return self.state is HostState.SLEEPING

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a driver alive until cancelled; started() when it can serve for the first time.

        Raises:
            LoadRefused: the first load failed. Too many restarts, and later loads that fail count as such,
                fail the device instead.
        """
        while True:
            if self._load is None:
                self._note_started(task_status)
                await self._wait_for_load()
            try:
                await self._run_driver(task_status)
                assert self._night is not None
                if self._night.forgets_model:
                    self._load = None
                else:
                    await self._sleep(self._night)
            except (DriverLost, LoadRefused, OSError) as error:
                if not self._has_served and self._night is not None:
                    self._refuse_load(str(error))
                    continue
                if not self._has_served:  # it never worked here: trying again would hide why
                    self._fail(str(error))
                    raise LoadRefused(f"device {self.name}: {error}") from error
                pause_seconds = self._restarts.take()
                if pause_seconds is None:
                    self._fail(f"{error}; {MAX_DRIVER_RESTARTS} restarts did not help")
                    return
                self.state, self.message = HostState.RESTARTING, str(error)
                self.num_restarts += 1
                self._events.record("driver", f"{self.name}: {error}; restarting", level="warning")
                self._tell(DriverDown(str(error), is_final=False))
                await trio.sleep(pause_seconds)

    async def _run_driver(self, task_status: trio.TaskStatus[None]) -> None:
        """Start a driver, and serve with it until somebody wants it ended.

        Raises DriverLost, LoadRefused or OSError when it ends of itself, or never served.
        """
        assert self._open_link is not None
        link = await self._open_link()
        try:
            loaded = await self._bring_up(link)
            self.state, self.message = HostState.READY, ""
            self._end_night()
            self._tell(DriverUp(link, loaded))
            if not self._has_served:
                self._has_served, self.loaded_at = True, int(time.time())
                self._note_started(task_status)
            await self._pump(link)
        finally:
            await link.aclose()

    def _note_started(self, task_status: trio.TaskStatus[None]) -> None:
        if not self._has_started:
            self._has_started = True
            task_status.started()

    async def sleep(self) -> None:
        """End the driver until `wake`: all of the device's memory is the machine's again. A checkpoint.

        Processes go on later by computing again what they had; nothing of them is lost.

        Raises:
            SyscallError: EBUSY, there is no driver that serves, or it was woken or failed meanwhile.
        """
        if self.is_asleep:
            return
        self._check_ready()
        if self._night is not None and self._night.forgets_model:
            raise SyscallError(Errno.EBUSY, f"the model of device {self.name} is being unloaded")
        self._night = night = self._night or Night()
        self._bedtime.set()
        await night.fell_asleep.wait()
        if not self.is_asleep:
            raise SyscallError(Errno.EBUSY, f"device {self.name} is {self.state.value}: it does not sleep")

    async def wake(self) -> bool:
        """Start the driver again and wait until it has loaded what it had. A checkpoint.

        Returns:
            False: it has failed meanwhile. True also if it did not sleep.
        """
        night = self._night
        if night is None or night.forgets_model:
            return True
        night.morning.set()
        await night.ended.wait()
        return self.state is not HostState.FAILED

    def _check_ready(self) -> None:
        if self.state is not HostState.READY:
            raise SyscallError(Errno.EBUSY, f"device {self.name} is {self.state.value}, not ready")

    async def _sleep(self, night: Night) -> None:
        """The driver was ended because somebody asked for it."""
        self.state, self.message = HostState.SLEEPING, ""
        self._tell(DriverDown("it sleeps", is_final=False))
        night.fell_asleep.set()
        await night.morning.wait()
        self.state = HostState.STARTING

    async def unload(self) -> None:
        """End the driver and forget its model: nobody must be left on the device. A checkpoint.

        Raises:
            SyscallError: EBUSY, there is no driver that serves, or it failed meanwhile.
        """
        self._check_ready()
        if self._night is not None:
            raise SyscallError(Errno.EBUSY, f"device {self.name} is about to sleep, or to be empty")
        self._night = night = Night(forgets_model=True)
        self.is_leaving = True
        self._bedtime.set()
        await night.fell_asleep.wait()
        if not self.is_empty:
            self.is_leaving = False
            raise SyscallError(Errno.EBUSY, f"device {self.name} is {self.state.value}: nothing was unloaded")

    async def load(self, load: Load, open_link: OpenLink) -> None:
        """Have an empty device load a model. A checkpoint.

        Raises:
            LoadRefused: it cannot; the device is empty as before.
        """
        night = self._night
        assert self.is_empty
        assert night is not None
        self._load, self._open_link = load, open_link
        night.morning.set()
        await night.ended.wait()
        if night.problem:
            raise LoadRefused(night.problem)

    @property
    def is_empty(self) -> bool:
        """True while it has no model, and none is being loaded."""
        return self.state is HostState.EMPTY and self._load is None

    async def _wait_for_load(self) -> None:
        """There is no model: wait for one."""
        night = self._night = self._night or Night(forgets_model=True)
        self._tell(Vacate())
        self.state, self.message, self.hello = HostState.EMPTY, "", None
        self.is_leaving = self._has_served = False
        night.fell_asleep.set()
        await night.morning.wait()
        self._bedtime = trio.Event()
        self.state = HostState.STARTING

    def _refuse_load(self, problem: str) -> None:
        """The model that an empty device was given cannot be loaded."""
        assert self._night is not None
        self._events.record("driver", f"{self.name}: {problem}", level="error")
        night, self._night = self._night, None
        self._load = None
        night.problem = problem
        night.ended.set()

    def _end_night(self) -> None:
        """The device serves, or never will again."""
        if self._night is not None and (self._night.morning.is_set() or self.state is HostState.FAILED):
            self._night.fell_asleep.set()
            self._night.ended.set()
            self._night, self._bedtime = None, trio.Event()

    async def _bring_up(self, link: DriverLink) -> Loaded:
        self.hello = await receive_hello(link, self.name)
        self.state = HostState.LOADING
        assert self._load is not None
        loaded = await load_model(link, self._load, self.name, self._note_progress)
        record_loaded(self._events, self.name, loaded)
        return loaded

    def _note_progress(self, progress: Progress) -> None:
        self.message = f"{progress.what} {progress.done_bytes}/{progress.total_bytes} bytes"
        if self._on_progress is not None:
            self._on_progress(self.name, progress)

    async def _pump(self, link: DriverLink) -> None:
        """Hand results to the Core until the driver is gone, and see to it that it does not hang.

        Returns when the driver is to be ended, so that the device may sleep.
        """
        lost: DriverLost | None = None

        async def end_when_asked(scope: trio.CancelScope) -> None:
            await self._bedtime.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, link)
            nursery.start_soon(end_when_asked, nursery.cancel_scope)
            while True:
                try:
                    message: FromDriver = await link.receive()
                except DriverLost as error:
                    nursery.cancel_scope.cancel()
                    lost = error
                    break
                match message:
                    case StepDone():
                        self._tell(StepFinished(message))
                    case CopyDone():
                        self._tell(CopyFinished(message))
                    case Compiled():
                        self._tell(GrammarFinished(message))
                    case _:
                        nursery.cancel_scope.cancel()
                        lost = DriverLost(f"driver {self.name} sent {type(message).__name__} out of turn")
                        break
        if lost is not None:
            raise lost

    async def _watch(self, link: DriverLink) -> None:
        """Kill a driver that hangs. Looks now and then: a timer for each step would cost every step."""
        while True:
            await trio.sleep(self._step_timeout / 4)
            oldest = self.core.in_flight.oldest
            if oldest is not None and trio.current_time() - oldest.issued_at > self._step_timeout:
                self._events.record(
                    "driver",
                    f"{self.name}: a step took over {self._step_timeout:g} s; killing it",
                    level="error",
                )
                link.kill()

    def _fail(self, message: str) -> None:
        self.state, self.message = HostState.FAILED, message
        self._events.record("driver", f"{self.name}: {message}", level="error")
        self._tell(DriverDown(message, is_final=True))
        self._end_night()

    def _tell(self, message: FromDevice) -> None:
        with contextlib.suppress(MailboxClosed):  # the kernel is stopping
            self.core.mailbox.send_nowait(message)
