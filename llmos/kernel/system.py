"""The parts of a running kernel, and what can be said of them all together."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable

import attrs
import msgspec
import structlog
import trio

from llmos.device import KVFormat, Loaded
from llmos.ipc.mailbox import MailboxClosed
from llmos.kernel.driver_host import DriverHost, HostState
from llmos.kernel.errands import Errands
from llmos.kernel.events import EventLog
from llmos.kernel.grammar_check import GrammarCheck
from llmos.kernel.image_store import ImageStore
from llmos.kernel.metrics import Metrics
from llmos.kernel.tenants import Tenants
from llmos.kernel.traces import Traces
from llmos.mm.mapper import MapStatistics
from llmos.mm.swap import SwapStatistics
from llmos.mm.vmm import VmmStatistics
from llmos.params import MAX_SAVES_AT_ONCE, VERSION, ZOMBIE_SECONDS
from llmos.place.placer import DeviceLoad, least_loaded
from llmos.proc.pcb import Process
from llmos.proc.table import ProcessTable
from llmos.sched.accounts import Accounts
from llmos.sched.core import Core
from llmos.sched.messages import Sweep
from syscalls.errno import Errno, SyscallError
from syscalls.process import ProcessInfo
from syscalls.system import (
    CacheInfo,
    DeviceInfo,
    FormatQuality,
    MapInfo,
    Model,
    StatisticsInfo,
    StepCost,
    SwapInfo,
    TierInfo,
)
from syscalls.tenant import TenantsReloaded

process_log = structlog.get_logger("process")


@attrs.define(eq=False)
class System:
    """What syscall handlers work on. Made by boot; each part has its own owner."""

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
    saving: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_SAVES_AT_ONCE))
    cores: dict[str, Core] = attrs.field(factory=dict)
    hosts: dict[str, DriverHost] = attrs.field(factory=dict)
    max_waiting: int = 4096  # processes that wait on one device; more are refused
    num_sessions: int = 0
    is_draining: bool = False
    started_at: float = attrs.field(factory=trio.current_time)
    loaded_at: int = 0  # seconds since the epoch
    request_shutdown: Callable[[float], None] = lambda grace: None
    reload_tenants: Callable[[], Awaitable[TenantsReloaded]] | None = None  # None: there is no tenants file
    num_spawned: int = 0
    traces: Traces = attrs.field(factory=Traces)
    unflushed: set[Callable[[], None]] = attrs.field(factory=set)  # sessions with replies that wait
    num_live: Counter[str] = attrs.field(factory=Counter)  # processes that have not exited, by device

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
        loads = []
        if all(host.model_name != wanted for host in self.hosts.values()):
            served = ", ".join(sorted({repr(host.model_name) for host in self.hosts.values()}))
            raise SyscallError(Errno.ENOENT, f"no model {wanted!r}; {served} is served")
        for name, host in self.hosts.items():
            if host.state is HostState.FAILED or host.model_name != wanted:
                continue
            statistics = self.cores[name].statistics()
            memory = statistics.memory
            loads.append(
                DeviceLoad(
                    name,
                    host.state is HostState.READY,
                    self.num_live[name],
                    memory.num_free if memory else 0,
                )
            )
        chosen = least_loaded(loads)
        if chosen is None:
            raise SyscallError(Errno.ENODEV, "every device has failed; `llmsh lsdev` says why")
        name, core = chosen, self.cores[chosen]
        if core.loaded is None:
            raise SyscallError(
                Errno.EAGAIN, f"device {name} is {self.hosts[name].state.value}; the model is not ready"
            )
        if (
            len(core.residents.queue.waiting) + len(core.mailbox) >= self.max_waiting
        ):  # both wait: in line, or to join it
            raise SyscallError(
                Errno.EAGAIN, f"{self.max_waiting} processes wait on {name}, the most that may"
            )
        return core

    def default_model(self, *, embeds: bool) -> str:
        """The model that serves calls without a name: the first; for vectors the encoder if there is one."""
        names = [host.model_name for host in self.hosts.values()]
        return names[-1 if embeds else 0]

    def core_of(self, process: Process) -> Core:
        """The device that a process lives on."""
        return self.cores[process.device]

    def device_infos(self) -> tuple[DeviceInfo, ...]:
        """What `lsdev` shows."""
        return tuple(self._device_info(name) for name in self.hosts)

    def _device_info(self, name: str) -> DeviceInfo:
        host, core = self.hosts[name], self.cores[name]
        statistics, hello, loaded = core.statistics(), host.hello, core.loaded
        memory = statistics.memory
        return DeviceInfo(
            name=name,
            kind=hello.kind if hello else "",
            description=hello.description if hello else "",
            state=host.state.value,
            model=loaded.model.name if loaded else "",
            dtype=loaded.model.dtype if loaded else "",
            kv_dtype=loaded.kv.name if loaded else "",
            kernels=loaded.model.kernels if loaded else "",
            quality=_format_quality(loaded),
            cache=_cache_info(memory, loaded.kv, core.cache_policy) if memory and loaded else None,
            step_cost=_step_cost(core),
            swap=_swap_info(statistics.swap, loaded.kv.frame_bytes) if loaded else None,
            num_threads=hello.num_threads if hello else 0,
            frame_bytes=loaded.kv.frame_bytes if loaded else 0,
            num_frames=memory.num_frames if memory else 0,
            num_free_frames=memory.num_free if memory else 0,
            num_cached_frames=memory.num_cached if memory else 0,
            num_processes=statistics.num_processes,
            num_running=statistics.num_running,
            num_waiting=statistics.num_waiting,
            num_steps=statistics.num_steps,
            num_output_tokens=statistics.num_output_tokens,
            num_preemptions=statistics.num_preemptions,
            maps=_map_info(memory.maps) if memory else None,
            num_restarts=host.num_restarts,
            driver_pid=hello.os_pid if hello else None,
            message=host.message,
        )

    def models(self) -> tuple[Model, ...]:
        """The models that are served, one entry for each name."""
        found: dict[str, Model] = {}
        for name, core in self.cores.items():
            if core.loaded is None or core.loaded.model.name in found:
                continue
            model, kv = core.loaded.model, core.loaded.kv
            found[model.name] = Model(
                name=model.name,
                path=model.path,
                max_model_len=model.max_model_len,
                vocab_size=model.vocab_size,
                eos_token_ids=model.eos_token_ids,
                dtype=model.dtype,
                hash=model.hash,
                num_parameters=model.num_parameters,
                created=self.loaded_at,
                fingerprint="-".join(
                    (model.hash[:10], model.dtype, kv.name, str(kv.tokens_per_page), model.kernels, VERSION)
                ),
                ready=self.hosts[name].state is HostState.READY,
                generates=model.generates,
                embedding=model.embedding,
            )
        return tuple(found.values())

    # --- processes ---------------------------------------------------------------------------------------

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

    def reap(self, process: Process) -> None:
        """Take a zombie out of the table."""
        self.table.reap(process)
        process.tell_followers()

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


def _format_quality(loaded: Loaded | None) -> FormatQuality | None:
    if loaded is None or (found := loaded.quality) is None:
        return None
    return FormatQuality(found.kl_divergence, found.top1_agreement, found.num_tokens, found.text)


def _swap_info(swap: SwapStatistics | None, frame_bytes: int) -> SwapInfo | None:
    if swap is None or not any(tier.num_slots for tier in swap.tiers.values()):
        return None
    return SwapInfo(
        tiers=tuple(
            TierInfo(
                name=name,
                num_bytes=tier.num_slots * frame_bytes,
                num_free_bytes=tier.num_free * frame_bytes,
                num_bytes_out=tier.num_bytes_out,
                num_bytes_in=tier.num_bytes_in,
            )
            for name, tier in swap.tiers.items()
        ),
        num_copies_in_flight=swap.num_in_flight,
        num_clean_bytes=swap.num_clean_bytes,
        num_faulty_pages=swap.num_faults,
        num_dropped_pages=swap.num_dropped,
        num_copies_beside_steps=swap.num_beside_steps,
    )


def _cache_info(memory: VmmStatistics, kv: KVFormat, policy: str) -> CacheInfo:
    prefix = memory.prefix
    return CacheInfo(
        policy=policy,
        page_bytes=kv.page_bytes,
        tokens_per_page=kv.tokens_per_page,
        num_pages=prefix.num_pages,
        num_idle_pages=prefix.num_idle_pages,
        num_queries=prefix.num_queries,
        num_hits=prefix.num_hits,
        num_query_tokens=prefix.num_query_tokens,
        num_hit_tokens=prefix.num_hit_tokens,
        num_copied_pages=memory.num_tail_copies,
        num_evicted_pages=prefix.num_evicted_pages,
        num_pinned_pages=prefix.num_pinned_pages,
    )


def _map_info(maps: MapStatistics) -> MapInfo:
    device = maps.device
    return MapInfo(
        num_ahead=maps.num_ahead,
        num_sync=maps.num_sync,
        num_reused=maps.num_reused,
        num_unused=maps.num_unused,
        num_late=device.num_late,
        num_unmapped=device.num_unmapped,
        num_waiting_steps=maps.num_waiting_steps,
        wait_seconds=device.wait_seconds,
        beside_seconds=device.beside_seconds,
    )


def _step_cost(core: Core) -> StepCost | None:
    if core.loaded is None or (profile := core.loaded.profile) is None or core.forecast is None:
        return None
    cost = msgspec.structs.asdict(profile.cost)
    return StepCost(**cost, error=profile.error, correction=core.forecast.correction)
