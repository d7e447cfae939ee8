"""What the kernel can say of processes, memory and tenants by looking at all of them: made when asked for."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import trio

from llmos.kernel.system import System
from llmos.mm.frame_map import KINDS, draw_cells, take_frame_kinds
from llmos.mm.ledger import Holder, Ledger, take_ledger
from llmos.mm.page_table import PageFrames
from llmos.proc.activity import WAITS, Activity
from llmos.proc.pcb import Process
from llmos.proc.verdict import explain
from llmos.sched.core import Core
from syscalls.memory import (
    DeviceMemory,
    FrameMap,
    FrameRun,
    MapList,
    MapRange,
    ProcessMemory,
    TenantMemory,
    TierMemory,
)
from syscalls.process import TimelineEntry, WhyInfo
from syscalls.tenant import TenantShare


def holder_of(process: Process) -> Holder:
    """A process, as the ledger needs to know it."""
    num_positions = max(process.num_scheduled, len(process.tokens) + process.num_pending)
    return Holder(process.pid, process.tenant, process.model, process.space, num_positions, process.backing)


def ledger_of(core: Core) -> Ledger | None:
    """A device's ledger; None: it has not loaded a model yet."""
    residents = core.residents
    if residents.switch is None:
        return None
    return take_ledger(residents.switch.vmm, map(holder_of, residents.queue.members.values()))


def tenant_shares(system: System, memory: bool = True) -> list[TenantShare]:
    """What every tenant was served and has, by name; its memory only where asked for."""
    resident: Counter[str] = Counter()
    for core in system.cores.values() if memory else ():
        if (ledger := ledger_of(core)) is not None:
            for tenant, usage in ledger.tenants.items():
                resident[tenant] += usage.resident_bytes
    return [
        TenantShare(
            tenant=account.tenant,
            weight=account.weight,
            counter=account.counter,
            num_prompt_tokens=account.num_prompt_tokens,
            num_output_tokens=account.num_output_tokens,
            token_seconds=account.token_seconds,
            num_running=account.num_running,
            num_waiting=account.num_waiting,
            num_resident_bytes=resident[account.tenant],
        )
        for account in sorted(system.accounts, key=lambda account: account.tenant)
    ]


def device_memories(system: System, tenant: str | None) -> tuple[DeviceMemory, ...]:
    """The ledgers of all devices, with the processes and the account of one tenant; None: of everybody."""
    found = []
    for name, core in system.cores.items():
        ledger = ledger_of(core)
        if ledger is None or core.loaded is None:
            continue
        total = ledger.total
        tenants = tuple(
            TenantMemory(
                tenant=who,
                private=usage.private_bytes,
                shared=usage.shared_bytes,
                ahead=usage.ahead_bytes,
                cached=usage.cached_bytes,
                host=usage.host_bytes,
                disk=usage.disk_bytes,
                pinned=core.residents.switch.vmm.pinned_bytes(who) if core.residents.switch else 0,
            )
            for who, usage in sorted(ledger.tenants.items())
            if tenant in (None, who)
        )
        processes = tuple(
            ProcessMemory(
                pid=each.pid,
                tenant=each.tenant,
                private=each.private_bytes,
                shared=each.shared_bytes,
                ahead=each.ahead_bytes,
                host=each.host_bytes,
                disk=each.disk_bytes,
            )
            for each in sorted(ledger.processes, key=lambda each: each.pid)
            if tenant in (None, each.tenant)
        )
        found.append(
            DeviceMemory(
                device=name,
                model=core.loaded.model.name,
                weights=core.loaded.model.weight_bytes,
                pool=ledger.pool_bytes,
                private=total.private_bytes,
                shared=total.shared_bytes,
                ahead=total.ahead_bytes,
                cached=total.cached_bytes,
                moving=ledger.moving_bytes,
                free=ledger.free_bytes,
                tiers=_tiers(core),
                tenants=tenants,
                processes=processes,
            )
        )
    return tuple(found)


def _tiers(core: Core) -> tuple[TierMemory, ...]:
    switch = core.residents.switch
    if switch is None:
        return ()
    slot_bytes = switch.vmm.kv.frame_bytes
    return tuple(
        TierMemory(tier, found.num_slots * slot_bytes, (found.num_slots - found.num_free) * slot_bytes)
        for tier, found in switch.swap.statistics().tiers.items()
        if found.num_slots
    )


def frame_maps(system: System) -> tuple[FrameMap, ...]:
    """What the frames of every device that has loaded a model are for."""
    found = []
    for name, core in system.cores.items():
        residents = core.residents
        if residents.switch is None or core.loaded is None:
            continue
        vmm = residents.switch.vmm
        kinds = take_frame_kinds(vmm, map(holder_of, residents.queue.members.values()))
        frames_per_cell, runs = draw_cells(kinds)
        found.append(
            FrameMap(
                device=name,
                model=core.loaded.model.name,
                weights=core.loaded.model.weight_bytes,
                frame_bytes=vmm.kv.frame_bytes,
                num_frames=len(kinds),
                frames_per_cell=frames_per_cell,
                num_by_kind={kind: kinds.count(index) for index, kind in enumerate(KINDS)},
                runs=tuple(FrameRun(*run) for run in runs),
            )
        )
    return tuple(found)


def map_list(system: System, process: Process) -> MapList:
    """The address space of a process, in ranges of pages that are alike."""
    switch = system.core_of(process).residents.switch
    if switch is None or process.space is None:
        return MapList(process.pid, process.device, ())
    kv, refcounts = switch.vmm.kv, switch.vmm.refcounts
    num_used = kv.num_pages(holder_of(process).num_positions)

    def describe(page: tuple[int, PageFrames]) -> tuple[str, int]:
        vpn, frames = page
        num_references = refcounts[frames[0]]
        kind = "shared" if num_references > 1 else "private" if vpn < num_used else "ahead"
        return kind, num_references

    ranges = []
    start = 0
    for (kind, num_references), run in groupby(enumerate(process.space.page_table.entries), describe):
        num_pages = sum(1 for _ in run)
        end = start + num_pages * kv.tokens_per_page
        num_bytes = num_pages * kv.page_bytes
        ranges.append(MapRange(start, end, kind, num_references, num_bytes))
        start = end
    return MapList(process.pid, process.device, tuple(ranges))


def why_info(system: System, process: Process) -> WhyInfo:
    """What happened to a process, where its time went, and the verdict."""
    now = trio.current_time()
    timeline = process.timeline
    recorder = system.core_of(process).residents.recorder
    timeline.settle(now, len(process.output), recorder.short_seconds(now))
    if timeline.activity in WAITS:
        timeline.turn.note_busiest(system.accounts.busiest())
    entries = tuple(
        TimelineEntry(
            kind=str(entry.kind),
            at=entry.at - timeline.began,
            seconds=entry.until - entry.at,
            count=entry.count,
            num_tokens=entry.num_tokens,
            num_bytes=entry.num_bytes,
            pid=entry.pid,
            text=entry.text,
        )
        for entry in sorted(timeline.entries, key=lambda entry: entry.at)
    )
    return WhyInfo(
        pid=process.pid,
        state=process.describe_state,
        verdict=explain(process, now),
        entries=entries,
        num_dropped=timeline.num_dropped,
        seconds={each.value: timeline.seconds[each] for each in Activity if each is not Activity.ENDED},
    )
