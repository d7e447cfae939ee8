"""Memory: free, maps, cache."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shell.llmsh.errors import UsageError
from shell.llmsh.listing import Column, Listing, make_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.render import format_bytes
from shell.llmsh.table import JSON, Command
from syscalls.memory import DeviceMemory, MapList
from syscalls.system import DeviceInfo

USES = ("private", "shared", "ahead", "cached", "moving", "free")  # add up to the pool
MINOR_USES = ("ahead", "moving")
COUNTS = (
    "POLICY",
    "PAGES",
    "IDLE",
    "PINNED",
    "SIZE",
    "QUERIES",
    "HITS",
    "TOKENS",
    "FOUND",
    "RATE",
    "COPIED",
    "EVICTED",
)
MAP_COUNTS = (
    "AHEAD",
    "IN-STEP",
    "REUSED",
    "UNUSED",
    "LATE",
    "UNMAPPED",
    "STEPS",
    "WAITING",
    "WAITED",
    "BESIDE",
)
MINOR_MAP_COUNTS = ("REUSED", "UNUSED", "LATE", "UNMAPPED", "BESIDE")
MINOR_COUNTS = ("POLICY", "IDLE", "PINNED", "QUERIES", "HITS", "COPIED", "EVICTED")


async def show_memory(shell: Shell, arguments: Arguments) -> int:
    """`free`: the ledger of each device, by use, by tenant or by process."""
    client = await shell.client()
    devices = await client.meminfo()
    if shell.is_json(arguments):
        shell.screen.json(devices)
    elif arguments["tenants"]:
        shell.screen.show(make_tenant_table(devices))
    elif arguments["processes"]:
        shell.screen.show(make_process_memory_table(devices))
    else:
        shell.screen.show(make_memory_table(devices))
    return 0


def make_memory_table(devices: Sequence[DeviceMemory]) -> Listing:
    """Lay out devices by what their memory is used for."""
    tiers = list(dict.fromkeys(tier.tier for device in devices for tier in device.tiers))
    columns = (
        Column("DEVICE"),
        Column("WEIGHTS", True, is_minor=True),
        Column("POOL", True),
        *(Column(use.upper(), True, is_minor=use in MINOR_USES) for use in USES),
        *(Column(tier.upper(), True) for tier in tiers),
    )
    rows = []
    for device in devices:
        below = {
            tier.tier: f"{format_bytes(tier.used)} of {format_bytes(tier.total)}" for tier in device.tiers
        }
        sizes = (device.pool, *(getattr(device, use) for use in USES))
        rows.append(
            (
                device.device,
                format_bytes(device.weights) if device.weights else None,
                *map(format_bytes, sizes),
                *(below.get(tier) for tier in tiers),
            )
        )
    return make_table(columns, rows)


def make_tenant_table(devices: Sequence[DeviceMemory]) -> Listing:
    """Lay out what tenants have on each device."""
    names = ("private", "shared", "ahead", "cached", "pinned", "host", "disk")
    columns = (Column("DEVICE"), Column("TENANT"), *(Column(name.upper(), True) for name in names))
    rows = [
        (device.device, tenant.tenant, *(format_bytes(getattr(tenant, name)) for name in names))
        for device in devices
        for tenant in device.tenants
    ]
    return make_table(columns, rows)


def make_process_memory_table(devices: Sequence[DeviceMemory]) -> Listing:
    """Lay out what processes have on each device, those with most first."""
    names = ("private", "shared", "ahead", "host", "disk")
    columns = (
        Column("DEVICE"),
        Column("PID", True),
        Column("TENANT"),
        *(Column(name.upper(), True) for name in names),
    )
    rows = [
        (
            device.device,
            process.pid,
            process.tenant,
            *(format_bytes(getattr(process, name)) for name in names),
        )
        for device in devices
        for process in sorted(device.processes, key=lambda p: -(p.private + p.shared + p.ahead))
        if any(getattr(process, name) for name in names)
    ]
    return make_table(columns, rows)


async def show_maps(shell: Shell, arguments: Arguments) -> int:
    """`maps`: the address space of a process."""
    client = await shell.client()
    found = await client.maps(shell.jobs.resolve_one(arguments.operands[0]))
    if shell.is_json(arguments):
        shell.screen.json(found)
    else:
        shell.screen.show(make_map_table(found))
    return 0


def make_map_table(found: MapList) -> Listing:
    """Lay out ranges of positions."""
    columns = (
        Column("POSITIONS", True),
        Column("SIZE", True),
        Column("REFS", True),
        Column("WHAT"),
        Column("DEVICE"),
    )
    rows = [
        (
            f"{run.start}-{run.end - 1}",
            format_bytes(run.num_bytes),
            run.num_references,
            run.kind,
            found.device,
        )
        for run in found.ranges
    ]
    return make_table(columns, rows)


async def show_cache(shell: Shell, arguments: Arguments) -> int:
    """`cache`: what the prefix cache of each device holds, and what it was good for; or drop it."""
    client = await shell.client()
    if arguments["drop"]:
        if arguments["maps"]:
            raise UsageError("--drop and --maps do not go together")
        dropped = await client.drop_cache()
        if shell.is_json(arguments):
            shell.screen.json(dropped)
        else:
            shell.screen.line(f"{dropped.num_pages} pages dropped")
        return 0
    if arguments["maps"]:
        _show_map_counts(shell, await client.devices(), shell.is_json(arguments))
        return 0
    caches = [(device.name, device.cache) for device in await client.devices() if device.cache]
    if shell.is_json(arguments):
        shell.screen.json([{"device": name, **msgspec.structs.asdict(cache)} for name, cache in caches])
        return 0
    columns = (Column("DEVICE"), *(Column(name, True, is_minor=name in MINOR_COUNTS) for name in COUNTS))
    rows = [
        (
            name,
            cache.policy,
            cache.num_pages,
            cache.num_idle_pages,
            cache.num_pinned_pages,
            format_bytes(cache.num_pages * cache.page_bytes),
            cache.num_queries,
            cache.num_hits,
            cache.num_query_tokens,
            cache.num_hit_tokens,
            f"{cache.num_hit_tokens / max(1, cache.num_query_tokens):.1%}",
            cache.num_copied_pages,
            cache.num_evicted_pages,
        )
        for name, cache in caches
    ]
    shell.screen.show(make_table(columns, rows))
    return 0


def _show_map_counts(shell: Shell, devices: Sequence[DeviceInfo], is_json: bool) -> None:
    """How pages of each device came to be mapped, and what steps waited for that."""
    found = [(device, device.maps) for device in devices if device.maps is not None]
    if is_json:
        shell.screen.json([{"device": device.name, **msgspec.structs.asdict(maps)} for device, maps in found])
        return
    columns = (
        Column("DEVICE"),
        *(Column(name, True, is_minor=name in MINOR_MAP_COUNTS) for name in MAP_COUNTS),
    )
    rows = [
        (
            device.name,
            maps.num_ahead,
            maps.num_sync,
            maps.num_reused,
            maps.num_unused,
            maps.num_late,
            maps.num_unmapped,
            device.num_steps,
            maps.num_waiting_steps,
            f"{1e3 * maps.wait_seconds:.1f} ms",
            f"{1e3 * maps.beside_seconds:.1f} ms",
        )
        for device, maps in found
    ]
    shell.screen.show(make_table(columns, rows))


COMMANDS = (
    Command(
        "free",
        summary="Show what the memory of each device is used for",
        details=(
            "Private is of one process alone; shared is also of others or in the prefix cache, and counts "
            "once; ahead is mapped for tokens to come; cached is in the prefix cache alone, and given up "
            "when memory is short. These, what copies are moving, and what is free make up the pool. The "
            "tiers below the device come last."
        ),
        function=show_memory,
        options=(
            Option(("--tenants", "-t"), "by tenant"),
            Option(("--processes", "-p"), "by process, most memory first"),
            JSON,
        ),
        examples=(
            ("free", "by use"),
            ("free -t", "by tenant"),
            ("free -p | head -n 5", "the processes with most"),
        ),
    ),
    Command(
        "maps",
        summary="Show the address space of a process",
        operands="PID|%JOB",
        details=(
            "Ranges of positions that are private to it, shared with others or the prefix cache, or mapped "
            "ahead, and how many references their pages have."
        ),
        function=show_maps,
        options=(JSON,),
        min_operands=1,
        max_operands=1,
        completes=("pid",),
        examples=(("maps 7", "process 7"),),
    ),
    Command(
        "cache",
        summary="Show the prefix cache of each device",
        details=(
            "Pages that it holds, those among them that are pinned and outlast the others for a time, tokens "
            "of prompts that were looked up and found there, pages copied where a prompt left one, "
            "and pages given up when memory was short. With -m, how pages came to be "
            "mapped: ahead of need, or in the step that writes them, which then waits; reused were still "
            "mapped from before, unused were given back, late were not done in time. With --drop, the pages "
            "that no process maps are given up: an administrator drops everybody's, others those of their "
            "tenant."
        ),
        function=show_cache,
        options=(
            Option(("--maps", "-m"), "how pages were mapped, and how long steps waited"),
            Option(("--drop",), "give up the pages that nobody uses"),
            JSON,
        ),
        examples=(
            ("cache", "all devices"),
            ("cache -m", "maps ahead, and those that steps waited for"),
            ("cache --drop", "what comes next finds an empty cache"),
        ),
    ),
)
