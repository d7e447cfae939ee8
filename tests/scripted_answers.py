"""What a scripted kernel says of its processes, tenants and devices: made-up numbers, always the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from syscalls.memory import DeviceMemory, MapList, MapRange, ProcessMemory, TenantMemory, TierMemory
from syscalls.process import (
    ProcessInfo,
    TimelineEntry,
    TraceEvent,
    TraceList,
    Usage,
    WhyInfo,
)
from syscalls.system import CacheInfo, DeviceInfo, MapInfo, StatisticsInfo
from syscalls.tenant import Limits, Rate, Rates, TenantInfo, TenantShare
from tests.scripted_process import ScriptedProcess

TRACE = (
    TraceEvent(1, "spawned", 0.0),
    TraceEvent(2, "prefill", 0.001, num_tokens=5),
    TraceEvent(3, "read", 0.002, 0.5, text="offset=3", result="2 tokens", session=7),
    TraceEvent(4, "ended", 0.6, text="stop"),
)


def tell_trace(since: int) -> TraceList:
    """Two events, then two more behind five that were lost."""
    batch = TRACE[:2] if since < 3 else TRACE[2:]
    return TraceList(batch, batch[-1].sequence + 1, 5 if since == 3 else 0, since == 3)


def list_maps(pid: int, device: str) -> MapList:
    """Two shared pages and one of its own."""
    ranges = (MapRange(0, 128, "shared", 2, 1 << 20), MapRange(128, 384, "private", 1, 2 << 20))
    return MapList(pid, device, ranges)


def tell_usage(process: ScriptedProcess) -> Usage:
    """Its tokens, and times that it did not take."""
    return Usage(
        num_prompt_tokens=process.num_prompt_tokens,
        num_output_tokens=len(process.output),
        num_cached_tokens=process.num_cached_tokens,
        first_token_seconds=0.25 if process.output else None,
        running_seconds=1.5,
    )


def describe_process(process: ScriptedProcess, default_model: str, device: str) -> ProcessInfo:
    """As ps and stat tell of it."""
    return ProcessInfo(
        pid=process.pid,
        parent=process.parent,
        tenant="tester",
        state=process.state,
        label=process.label,
        model=process.spawn.model or default_model,
        device=device,
        nice=process.nice,
        seed=process.seed,
        num_tokens=len(process.tokens),
        num_computed=len(process.tokens) if process.num_computed is None else process.num_computed,
        max_tokens=process.max_tokens,
        num_resident_bytes=3 << 20,
        num_shared_bytes=1 << 20,
        age_seconds=2.5,
        usage=tell_usage(process),
        status=process.end,
        activity="ended" if process.is_zombie else "decode",
    )


def explain_process(process: ScriptedProcess) -> WhyInfo:
    """A life with some of everything."""
    entries = (
        TimelineEntry("spawned", 0.0),
        TimelineEntry("queued", 0.0, 1.5, count=3, text="uid:7"),
        TimelineEntry("prefill", 1.5, 0.25, count=2, num_tokens=len(process.spawn.prompt)),
        TimelineEntry("first token", 1.75),
        TimelineEntry("preempted", 2.0, pid=17, text="swap, fair share of bob"),
        TimelineEntry("swapped out", 2.0, 0.5, num_bytes=64 << 20, text="host"),
    )
    spent = {"queued": 1.5, "prefill": 0.25, "decode": 0.25, "swapped": 0.5, "input": 0.0}
    return WhyInfo(process.pid, process.state, "slow to start: told so by the test", entries, 9, spent)


def account_memory(device: DeviceInfo, pids: Iterable[int]) -> DeviceMemory:
    """Every column of a device's ledger."""
    used = (device.num_frames - device.num_free_frames - device.num_cached_frames) * device.frame_bytes
    return DeviceMemory(
        device=device.name,
        model=device.model,
        weights=5 << 20,
        pool=device.num_frames * device.frame_bytes,
        private=used - (1 << 20),
        shared=1 << 20,
        ahead=0,
        cached=device.num_cached_frames * device.frame_bytes,
        moving=0,
        free=device.num_free_frames * device.frame_bytes,
        tenants=(TenantMemory("tester", used - (1 << 20), 1 << 20, 0, 0, 4 << 20),),
        processes=tuple(ProcessMemory(pid, "tester", 2 << 20, 1 << 20, 0, 4 << 20) for pid in sorted(pids)),
        tiers=(TierMemory("host", 64 << 20, 4 << 20),),
    )


def describe_tenant(share: TenantShare) -> TenantInfo:
    """With limits and a rate."""
    limits = Limits(max_running=4, tokens_per_minute=1000.0)
    rates = Rates(tokens=Rate(1000.0, 750.0, 15.0))
    return TenantInfo(share.tenant, limits, rates, 0.5, share.num_running, 3, share)


def count_share(spawned: Sequence[ScriptedProcess], num_running: int) -> TenantShare:
    """What the one tenant was served: all that was spawned."""
    num_prompt = sum(process.num_prompt_tokens for process in spawned)
    num_output = sum(len(process.output) for process in spawned)
    return TenantShare(
        "tester", 2.0, num_prompt + 2.0 * num_output, num_prompt, num_output, 0.0, num_running, 0, 3 << 20
    )


def count_all(
    devices: Sequence[DeviceInfo],
    spawned: Sequence[ScriptedProcess],
    processes: Iterable[ScriptedProcess],
    uptime_seconds: float,
    exposition: str,
) -> StatisticsInfo:
    """The kernel's counters.

    Args:
        devices: all.
        spawned: all processes that there ever were.
        processes: those that are in the table.
        uptime_seconds: so many.
        exposition: for Prometheus.
    """
    present = list(processes)
    num_output = sum(len(process.output) for process in spawned)
    return StatisticsInfo(
        version="9.9",
        uptime_seconds=uptime_seconds,
        draining=False,
        num_sessions=1,
        num_processes=len(present),
        num_running=count_running(present),
        num_waiting=0,
        num_spawned=len(spawned),
        num_exited=sum(process.is_zombie for process in spawned),
        num_preemptions=0,
        num_prompt_tokens=sum(process.num_prompt_tokens for process in spawned),
        num_cached_tokens=0,
        num_output_tokens=num_output,
        num_steps=num_output,
        num_frames=sum(device.num_frames for device in devices),
        num_free_frames=sum(device.num_free_frames for device in devices),
        num_cached_frames=sum(device.num_cached_frames for device in devices),
        num_tasks=10,
        num_open_files=10,
        exposition=exposition,
    )


def count_running(processes: Iterable[ScriptedProcess]) -> int:
    """Those whose state is RUNNING."""
    return sum(process.state == "RUNNING" for process in processes)


def make_device(name: str = "sim:0") -> DeviceInfo:
    """Describe a device with 100 frames: 60 used, 30 free, 10 cached."""
    return DeviceInfo(
        name=name,
        kind="sim",
        description="scripted",
        state="ready",
        model="scripted",
        dtype="float32",
        num_threads=1,
        frame_bytes=2 << 20,
        num_frames=100,
        num_free_frames=30,
        num_cached_frames=10,
        num_processes=0,
        num_running=0,
        num_waiting=0,
        num_steps=7,
        num_restarts=0,
        driver_pid=4242,
        cache=CacheInfo("cost", 2 << 20, 64, 20, 10, 8, 6, 1000, 250, 3, 7, 4),
        maps=MapInfo(40, 12, 5, 2, 1, 3, 6, 0.0125, 0.5),
    )
