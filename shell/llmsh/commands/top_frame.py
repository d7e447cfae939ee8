"""One frame of top: what a moment's answers of the kernel look like, beside those of the moment before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from shell.llmsh.listing import Column, Listing, make_table
from shell.llmsh.render import format_bytes, format_seconds
from shell.llmsh.text import make_safe
from syscalls.client import Client
from syscalls.memory import DeviceMemory
from syscalls.process import ProcessInfo
from syscalls.system import DeviceInfo, StatisticsInfo
from syscalls.tenant import TenantShare

MIN_BAR_COLUMNS, MAX_BAR_COLUMNS = 8, 40
SIZES_COLUMNS = 60  # beside the bar, as a rule
BAR = (("private", "#", "green"), ("shared", "=", "cyan"), ("ahead", "+", "green"), ("cached", "-", "yellow"))
STATE_ORDER = ("RUNNING", "READY", "SWAPPED", "BLOCKED", "STOPPED", "EMBRYO", "ZOMBIE")


@attrs.frozen
class Snapshot:
    """What one frame shows."""

    statistics: StatisticsInfo
    devices: tuple[DeviceInfo, ...]
    memory: tuple[DeviceMemory, ...]
    shares: tuple[TenantShare, ...]
    processes: tuple[ProcessInfo, ...]

    def memory_of(self, device: str) -> DeviceMemory | None:
        """The ledger of a device; None: it has not loaded a model yet."""
        return next((memory for memory in self.memory if memory.device == device), None)


async def take_snapshot(client: Client) -> Snapshot:
    """Ask the kernel; everyone's processes when it allows that."""
    return Snapshot(
        await client.statistics(),
        await client.devices(),
        await client.meminfo(),
        await client.shares(),
        await client.ps(everyone=client.welcome.admin),
    )


@attrs.frozen
class Frame:
    """What `draw` has laid out: as wide as the console, and as high when that has a height.

    Attributes:
        now: what is shown.
        rates: since the frame before.
    """

    now: Snapshot
    rates: Rates

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it for rich. Where it is low, half of it at most is for the system, a quarter for tenants."""
        now, rates, height = self.now, self.rates, options.height
        if height is None and console.is_alt_screen:  # inside a group options have no height
            height = console.height
        bar_columns = max(MIN_BAR_COLUMNS, min(MAX_BAR_COLUMNS, options.max_width - SIZES_COLUMNS))
        system = [*_draw_head(now, rates)]
        for device in now.devices:
            system += _draw_device(device, now, rates, bar_columns)
        num_tenants = num_rows = None  # all
        if height is not None:
            system = _fit_lines(console, options.update(height=None), system, max(1, height // 2))
            num_tenants = max(0, height // 4 - 2)  # below their header, above how many others there are
        tenants = [] if num_tenants == 0 else [*_draw_tenants(now.shares, rates, num_tenants), Text()]
        above = Group(*system, Text(), *tenants)
        yield above
        if height is not None:
            num_above = len(console.render_lines(above, options.update(height=None), pad=False))
            num_rows = max(1, height - num_above - 1)  # below their header
        yield _make_process_table(now, rates, num_rows)


def draw(now: Snapshot, before: Snapshot | None) -> Frame:
    """Lay out a frame. Rates are over the time since `before`; without it there are none."""
    seconds = now.statistics.uptime_seconds - before.statistics.uptime_seconds if before is not None else 0.0
    return Frame(now, Rates(before if seconds > 0 else None, seconds))


@attrs.frozen
class Rates:
    """How fast counters grew since the frame before."""

    before: Snapshot | None
    seconds: float

    def show(self, now: float, before: float | None, unit: str = "") -> str:
        """Write growth per second; "" when it is not known."""
        if self.before is None or before is None:
            return ""
        return f"{(now - before) / self.seconds:.1f}{unit}"

    def tenant_tokens(self, share: TenantShare) -> int:
        """Tokens that a tenant was served in the interval; 0 when there is none."""
        if self.before is None:
            return 0
        old = next((each for each in self.before.shares if each.tenant == share.tenant), None)
        return _num_tokens(share) - (_num_tokens(old) if old is not None else 0)

    def process_tokens(self, info: ProcessInfo) -> float | None:
        """Output tokens per second of a process; None when it is not known."""
        if self.before is None:
            return None
        old = next((each for each in self.before.processes if each.pid == info.pid), None)
        num_before = old.usage.num_output_tokens if old is not None else 0
        return (info.usage.num_output_tokens - num_before) / self.seconds


def _num_tokens(share: TenantShare) -> int:
    return share.num_prompt_tokens + share.num_output_tokens


def _fit_lines(console: Console, options: ConsoleOptions, lines: list[Text], most: int) -> list[Text]:
    """Return lines that take `most` on the screen: where they are too long or too many they are cut."""
    if len(console.render_lines(Group(*lines), options, pad=False)) <= most:
        return lines
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines if len(lines) <= most else [*lines[: most - 1], Text("…")]


def _draw_head(now: Snapshot, rates: Rates) -> tuple[Text, Text]:
    counters = now.statistics
    old = rates.before.statistics if rates.before is not None else None
    rate = rates.show(counters.num_output_tokens, old.num_output_tokens if old else None, "/s")
    system = (
        f"llmos {counters.version}, up {format_seconds(counters.uptime_seconds)}"
        f"{', draining' if counters.draining else ''}; sessions: {counters.num_sessions}; "
        f"processes: {counters.num_processes}, {counters.num_running} running, "
        f"{counters.num_waiting} waiting"
    )
    totals = (
        f"since boot: {counters.num_spawned} spawned, {counters.num_preemptions} preempted; "
        f"tokens: {counters.num_prompt_tokens} in, {counters.num_cached_tokens} cached, "
        f"{counters.num_output_tokens} out{f' ({rate})' if rate else ''}"
    )
    return Text(system), Text(totals)


def _draw_device(device: DeviceInfo, now: Snapshot, rates: Rates, bar_columns: int) -> Iterator[Text]:
    old = None
    if rates.before is not None:
        old = next((each for each in rates.before.devices if each.name == device.name), None)
    parts = [f"{device.name} {device.state}", f"{device.model} {device.dtype}".strip()]
    parts += [f"{device.num_running} running, {device.num_waiting} waiting"]
    if old is not None:
        steps = rates.show(device.num_steps, old.num_steps)
        tokens = rates.show(device.num_output_tokens, old.num_output_tokens)
        parts.append(f"{steps} steps/s, {tokens} tokens/s")
    yield Text(make_safe("; ".join(part for part in (*parts, device.message) if part)))
    if (memory := now.memory_of(device.name)) is not None:
        yield _draw_memory(memory, bar_columns)


def _draw_memory(memory: DeviceMemory, bar_columns: int) -> Text:
    """A bar of the pool by use, and the sizes behind it."""
    bar = Text("  [")
    filled = used = 0
    for use, mark, style in BAR:
        used += getattr(memory, use)
        end = round(used / memory.pool * bar_columns)
        bar.append(mark * (end - filled), style)
        filled = max(filled, end)
    bar.append(" " * (bar_columns - filled) + "] ")
    sizes = [
        f"{mark} {format_bytes(getattr(memory, use))} {use}" for use, mark, _ in BAR if getattr(memory, use)
    ]
    bar.append(", ".join([*sizes, f"{format_bytes(memory.free)} free"]))
    bar.append("".join(f"; {tier.tier}: {format_bytes(tier.used)}" for tier in memory.tiers if tier.used))
    return bar


def _draw_tenants(shares: Sequence[TenantShare], rates: Rates, most: int | None) -> Iterator[RenderableType]:
    """Tenants with what they were served, those served most in the interval first; `most` None: all."""
    columns = (
        Column("TENANT"),
        *(Column(name, True) for name in ("WEIGHT", "SHARE", "OVERALL", "TOK/S", "RUN", "WAIT", "MEM")),
    )
    recent = {share.tenant: rates.tenant_tokens(share) for share in shares}
    num_recent, num_all = sum(recent.values()), sum(map(_num_tokens, shares))
    rows = [
        (
            share.tenant,
            f"{share.weight:g}",
            f"{recent[share.tenant] / num_recent:.0%}" if num_recent else None,
            f"{_num_tokens(share) / num_all:.0%}" if num_all else None,
            f"{recent[share.tenant] / rates.seconds:.1f}" if rates.before is not None else None,
            share.num_running,
            share.num_waiting,
            format_bytes(share.num_resident_bytes),
        )
        for share in sorted(shares, key=lambda share: (-recent[share.tenant], -_num_tokens(share)))
    ]
    yield make_table(columns, rows[:most])
    if len(rows) > len(rows[:most]):
        yield Text(f"and {len(rows) - len(rows[:most])} others", style="dim")


def _make_process_table(now: Snapshot, rates: Rates, num_rows: int | None) -> Listing:
    """Processes, the fastest first, then by state."""
    columns = (
        Column("PID", True),
        Column("TENANT"),
        Column("STATE"),
        Column("NI", True, is_minor=True),
        *(Column(name, True) for name in ("TOKENS", "TOK/S", "MEM")),
        Column("SWAP", True, is_minor=True),
        Column("AGE", True, is_minor=True),
        Column("LABEL", is_flexible=True),
    )
    swapped = {
        process.pid: process.host + process.disk for memory in now.memory for process in memory.processes
    }
    speeds = {info.pid: rates.process_tokens(info) for info in now.processes}

    def importance(info: ProcessInfo) -> tuple[float, int, int]:
        state = info.state.partition("(")[0]
        rank = STATE_ORDER.index(state) if state in STATE_ORDER else len(STATE_ORDER)
        return -(speeds[info.pid] or 0.0), rank, info.pid

    rows = []
    for info in sorted(now.processes, key=importance)[:num_rows]:
        speed = speeds[info.pid]
        rows.append(
            (
                info.pid,
                info.tenant,
                info.state,
                info.nice,
                info.num_tokens,
                None if speed is None else f"{speed:.1f}",
                format_bytes(info.num_resident_bytes),
                format_bytes(swapped.get(info.pid, 0)),
                format_seconds(info.age_seconds),
                info.label,
            )
        )
    return make_table(columns, rows)
