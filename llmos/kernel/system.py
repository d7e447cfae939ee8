"""The parts of a running kernel, and what can be said of them all together."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable

import attrs
import structlog
import trio

from llmos.device import Loaded
from llmos.ipc.mailbox import MailboxClosed
from llmos.kernel.device_info import describe_device, describe_model
from llmos.kernel.driver_host import DriverHost, HostState
from llmos.kernel.errands import Errands
from llmos.kernel.events import EventLog
from llmos.kernel.grammar_check import GrammarCheck
from llmos.kernel.image_store import ImageStore
from llmos.kernel.metrics import Metrics
from llmos.kernel.tenants import Tenants
from llmos.kernel.traces import Traces
from llmos.params import MAX_SAVES_AT_ONCE, VERSION, ZOMBIE_SECONDS
from llmos.place.placer import DeviceLoad, least_loaded
from llmos.proc.pcb import Process
from llmos.proc.table import ProcessTable
from llmos.sched.accounts import Accounts
from llmos.sched.core import Core
from llmos.sched.messages import Sweep
from syscalls.errno import Errno, SyscallError
from syscalls.process import ProcessInfo
from syscalls.system import DeviceInfo, Model, StatisticsInfo
from syscalls.tenant import TenantsReloaded

process_log = structlog.get_logger("process")


@attrs.define(eq=False)
class System:
    """What syscall handlers work on. Made by boot; each part has its own owner."""

    # Its parts.
    events: EventLog = attrs.field(factory=EventLog)
    table: ProcessTable = attrs.field(factory=ProcessTable)
    accounts: Accounts = attrs.field(factory=Accounts)
    tenants: Tenants = attrs.field(
        default=attrs.Factory(lambda system: Tenants(system.accounts), takes_self=True)
    )
    metrics: Metrics = attrs.field(factory=Metrics)
    images: ImageStore = attrs.field(factory=ImageStore)
    errands: Errands = attrs.field(factory=Errands)
    grammars: GrammarCheck = attrs.field(factory=GrammarCheck)
    traces: Traces = attrs.field(factory=Traces)
    cores: dict[str, Core] = attrs.field(factory=dict)  # by device
    hosts: dict[str, DriverHost] = attrs.field(factory=dict)  # by device
    announced: list[str] = attrs.field(factory=list)  # models that somebody is having loaded, by name
    unflushed: set[Callable[[], None]] = attrs.field(factory=set)  # sessions with replies that wait

    # Its limits.
    max_waiting: int = 4096  # processes that wait on one device; more are refused
    saving: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_SAVES_AT_ONCE))
    # Threads that write metrics: more would take Python's lock from the step loop, and be no sooner done.
    rendering: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1))

    # What only boot can do; the last two may be out of the question.
    request_shutdown: Callable[[float], None] = lambda grace: None
    reload_tenants: Callable[[], Awaitable[TenantsReloaded]] | None = None  # None: there is no tenants file
    load_model: Callable[[str, str | None], Awaitable[str]] | None = None  # returns the device; None: not yet

    # What has happened.
    started_at: float = attrs.field(factory=trio.current_time)
    is_draining: bool = False
    num_sessions: int = 0  # open now
    num_spawned: int = 0
    num_live: Counter[str] = attrs.field(factory=Counter)  # processes that have not exited, by device
    _pauses: trio.lowlevel.ParkingLot = attrs.field(init=False, factory=trio.lowlevel.ParkingLot)

    def flush_replies(self) -> None:
        """Send the replies that wait, as far as that can be done at once."""
        for flush in list(self.unflushed):
            flush()

    # --- devices -----------------------------------------------------------------------------------------

    def place(self, model: str | None = None, *, embeds: bool = False) -> Core:
        """Choose the device of a new process.

        Args:
            model: by name; None: the default one for what the process does.
            embeds: it is to make a vector.

        Raises:
            SyscallError: ENOENT (no such model), ENODEV, EAGAIN (not loaded, or full).
        """
        wanted = model or self.default_model(embeds=embeds)
        if not wanted:
            raise SyscallError(Errno.ENODEV, "no model is loaded")
        if all(host.model_name != wanted for host in self.hosts.values()):
            names = {host.model_name for host in self.hosts.values()} - {""}
            served = ", ".join(sorted(map(repr, names))) or "none"
            raise SyscallError(Errno.ENOENT, f"no model {wanted!r}; {served} is served")
        name = least_loaded(
            [
                self._load_of(name)
                for name, host in self.hosts.items()
                if host.state is not HostState.FAILED and host.model_name == wanted
            ]
        )
        if name is None:
            raise SyscallError(Errno.ENODEV, "every device has failed; `llmsh lsdev` says why")
        core = self.cores[name]
        if core.loaded is None:
            raise SyscallError(
                Errno.EAGAIN, f"device {name} is {self.hosts[name].state.value}; the model is not ready"
            )
        num_waiting = len(core.residents.queue.waiting) + len(core.mailbox)  # in line, or to join it
        if num_waiting >= self.max_waiting:
            raise SyscallError(
                Errno.EAGAIN, f"{self.max_waiting} processes wait on {name}, the most that may"
            )
        return core

    def _load_of(self, device: str) -> DeviceLoad:
        memory = self.cores[device].statistics().memory
        num_free = memory.num_free if memory is not None else 0
        return DeviceLoad(device, self._serves(device), self.num_live[device], num_free)

    def default_model(self, *, embeds: bool) -> str:
        """The model that serves calls without a name: the first; for vectors the encoder if there is one.

        "" where none is loaded.
        """
        hosts = [host for host in self.hosts.values() if host.model_name]
        chosen = [host for host in hosts if host.encodes == embeds] or (hosts if embeds else [])
        return chosen[0].model_name if chosen else ""

    def core_of(self, process: Process) -> Core:
        """The device that a process lives on."""
        return self.cores[process.device]

    def device_infos(self) -> tuple[DeviceInfo, ...]:
        """What `lsdev` shows."""
        return tuple(describe_device(name, host, self.cores[name]) for name, host in self.hosts.items())

    def models(self) -> tuple[Model, ...]:
        """The models that are served, one entry for each name."""
        found: dict[str, tuple[Loaded, int]] = {}
        ready: set[str] = set()
        for name, core in self.cores.items():
            if core.loaded is not None:
                model = core.loaded.model.name
                found.setdefault(model, (core.loaded, self.hosts[name].loaded_at))
                if self._serves(name):
                    ready.add(model)
        return tuple(
            describe_model(loaded, created, ready=name in ready) for name, (loaded, created) in found.items()
        )

    def loading(self) -> tuple[str, ...]:
        """Names of models that will be served when they are loaded, and are not yet."""
        known = {core.loaded.model.name for core in self.cores.values() if core.loaded is not None}
        names = [host.model_name for host in self.hosts.values() if host.state is not HostState.FAILED]
        return tuple(dict.fromkeys(name for name in [*names, *self.announced] if name and name not in known))

    def is_asleep(self, device: str) -> bool:
        """Has somebody asked for a device to take no steps?"""
        return self.cores[device].rest.is_asked_for or self.hosts[device].is_asleep

    def _serves(self, device: str) -> bool:
        """Would a process that comes now be computed?"""
        return self.hosts[device].state is HostState.READY and not self.cores[device].rest.is_asked_for

    # --- processes ---------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """See to it that processes may still come. Raises SyscallError: ESHUTDOWN."""
        if self.is_draining:
            raise SyscallError(Errno.ESHUTDOWN, "the kernel is draining; nothing new is admitted")

    def enter(self, process: Process) -> None:
        """Put a new process into the table, and on its device's and its tenant's account."""
        self.table.add(process)
        self.tenants.of(process.tenant).processes.add(process)
        self.num_spawned += 1
        self.num_live[process.device] += 1

    def discard(self, process: Process) -> None:
        """Take out a process that never came to life."""
        self.table.discard(process)
        self.tenants.of(process.tenant).processes.discard(process)
        self.num_live[process.device] -= 1
        self.note_pause()

    async def wait_pause(self) -> None:
        """Wait until a process has ended, was stopped, waits for input or was reaped, or devices sleep.

        A checkpoint.
        """
        await self._pauses.park()

    def note_pause(self) -> None:
        """Wake those in `wait_pause`, to look at what they wait for."""
        self._pauses.unpark_all()

    def on_pause(self, process: Process) -> None:
        """Take in that a process goes on only when somebody says so."""
        self.note_pause()

    def on_exit(self, process: Process) -> None:
        """Account for a process that has become a zombie: one canonical line, counters, metrics."""
        self.table.num_exited += 1
        self.traces.on_exit(process)
        self.tenants.of(process.tenant).processes.discard(process)
        self.num_live[process.device] -= 1
        usage = process.usage(trio.current_time())
        assert process.status is not None
        self.metrics.observe_exit(process.status.reason, usage)
        process_log.info(
            "exit",
            pid=process.pid,
            parent=process.parent,
            tenant=process.tenant,
            label=process.label,
            user=process.user,
            device=process.device,
            reason=process.status.reason,
            message=process.status.message,
            prompt_tokens=usage.num_prompt_tokens,
            cached_tokens=usage.num_cached_tokens,
            output_tokens=usage.num_output_tokens,
            queued_ms=round(usage.queued_seconds * 1e3, 3),
            first_token_ms=None
            if usage.first_token_seconds is None
            else round(usage.first_token_seconds * 1e3, 3),
            total_ms=round(usage.running_seconds * 1e3, 3),
            preemptions=usage.num_preemptions,
        )
        self.note_pause()

    def reap(self, process: Process) -> None:
        """Take a zombie out of the table."""
        self.table.reap(process)
        process.tell_followers()
        self.note_pause()

    def process_info(self, process: Process, *, shared: bool = True) -> ProcessInfo:
        """What `ps` and `stat` show; what it shares only where asked for."""
        now = trio.current_time()
        num_resident_bytes = num_shared_bytes = 0
        if process.space is not None:
            switch = self.core_of(process).residents.switch
            assert switch is not None
            num_resident_bytes = switch.vmm.resident_bytes(process.space)
            if shared:
                num_shared_bytes = switch.vmm.shared_bytes(process.space)
        return ProcessInfo(
            pid=process.pid,
            parent=process.parent,
            tenant=process.tenant,
            state=process.describe_state,
            label=process.label,
            model=process.model,
            device=process.device,
            nice=process.nice,
            seed=process.sampling.seed or 0,
            num_tokens=len(process.tokens),
            num_computed=process.num_computed,
            max_tokens=process.max_tokens,
            num_resident_bytes=num_resident_bytes,
            num_shared_bytes=num_shared_bytes,
            age_seconds=now - process.spawned_at,
            usage=process.usage(now),
            status=process.status,
            activity=process.timeline.activity,
            user=process.user,
        )

    async def reap_forgotten(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reap zombies that nobody has asked for in ZOMBIE_SECONDS. Runs for ever.

        Those are detached ones, and killed ones that were to be reaped by their last read, which never came:
        who kills what it reads stops reading. Whatever else ends with output in hand waits for its session.
        """
        task_status.started()
        while True:
            await trio.sleep(ZOMBIE_SECONDS / 10)
            now = trio.current_time()
            for process in self.table:
                if process.ended_at is None or now - process.ended_at <= ZOMBIE_SECONDS:
                    continue
                if process.session is None or _is_unread(process):
                    self.reap(process)

    async def sweep_idle(
        self, idle_seconds: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Now and then have processes swapped out that have waited so long for input. Runs for ever."""
        task_status.started()
        while True:
            await trio.sleep(idle_seconds / 4)
            for core in self.cores.values():
                with contextlib.suppress(MailboxClosed):  # the kernel is stopping
                    core.mailbox.send_nowait(Sweep(idle_seconds))

    # --- numbers -----------------------------------------------------------------------------------------

    def statistics(self, exposition: str = "") -> StatisticsInfo:
        """Sum over the devices; counters count from boot."""
        cores = [core.statistics() for core in self.cores.values()]
        memories = [core.memory for core in cores if core.memory]
        return StatisticsInfo(
            version=VERSION,
            uptime_seconds=trio.current_time() - self.started_at,
            draining=self.is_draining,
            num_sessions=self.num_sessions,
            num_processes=len(self.table),
            num_running=sum(core.num_running for core in cores),
            num_waiting=sum(core.num_waiting for core in cores),
            num_spawned=self.num_spawned,
            num_exited=self.table.num_exited,
            num_preemptions=sum(core.num_preemptions for core in cores),
            num_prompt_tokens=sum(core.num_prompt_tokens for core in cores),
            num_cached_tokens=sum(core.num_cached_tokens for core in cores),
            num_output_tokens=sum(core.num_output_tokens for core in cores),
            num_steps=sum(core.num_steps for core in cores),
            num_frames=sum(memory.num_frames for memory in memories),
            num_free_frames=sum(memory.num_free for memory in memories),
            num_cached_frames=sum(memory.num_cached for memory in memories),
            num_tasks=trio.lowlevel.current_statistics().tasks_living,
            num_open_files=len(os.listdir("/proc/self/fd")) - 1,
            exposition=exposition,
        )


def _is_unread(process: Process) -> bool:
    return process.auto_reap and process.status is not None and process.status.reason == "killed"
