"""The kernel and its devices: lsdev, models, dmesg, shutdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from shell.llmsh.commands.generation import read_count
from shell.llmsh.listing import Column, Listing, make_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.table import JSON, Command
from syscalls.system import DeviceInfo, Event

MAX_EVENTS = 10_000
DEFAULT_GRACE_SECONDS = 30.0


async def list_devices(shell: Shell, arguments: Arguments) -> int:
    """`lsdev`: the devices."""
    client = await shell.client()
    devices = await client.devices()
    if shell.is_json(arguments):
        shell.screen.json(devices)
    else:
        shell.screen.show(make_device_table(devices))
    return 0


def make_device_table(devices: Iterable[DeviceInfo]) -> Listing:
    """Lay out devices, one a row."""
    columns = (
        Column("DEVICE"),
        Column("STATE"),
        Column("MODEL"),
        Column("DTYPE", is_minor=True),
        Column("KV", is_minor=True),
        Column("RUN", True),
        Column("WAIT", True),
        Column("STEPS", True, is_minor=True),
        Column("RESTARTS", True, is_minor=True),
        Column("DRIVER", True, is_minor=True),
        Column("DESCRIPTION", is_flexible=True),
    )
    rows = [
        (
            device.name,
            device.state,
            device.model,
            device.dtype,
            device.kv_dtype,
            device.num_running,
            device.num_waiting,
            device.num_steps,
            device.num_restarts,
            device.driver_pid,
            _describe_device(device),
        )
        for device in devices
    ]
    return make_table(columns, rows)


def _describe_device(device: DeviceInfo) -> str:
    parts = [device.description, device.kernels, device.message]
    if (quality := device.quality) is not None:
        parts.append(f"{device.dtype} costs {quality.kl_divergence:.4f} nats a token on {quality.text}")
    return "; ".join(part for part in parts if part)


async def list_models(shell: Shell, arguments: Arguments) -> int:
    """`models`: what is served; the first is the default."""
    client = await shell.client()
    models = await client.models()
    if shell.is_json(arguments):
        shell.screen.json(models)
        return 0
    columns = (
        Column("MODEL"),
        Column("PARAMETERS", True, is_minor=True),
        Column("CONTEXT", True),
        Column("VOCABULARY", True, is_minor=True),
        Column("DTYPE"),
        Column("STATE"),
        Column("PATH", is_flexible=True),
    )
    rows = [
        (
            model.name,
            f"{model.num_parameters / 1e6:.1f} M",
            model.max_model_len,
            model.vocab_size,
            model.dtype,
            "ready" if model.ready else "not ready",
            model.path,
        )
        for model in models
    ]
    shell.screen.show(make_table(columns, rows))
    return 0


async def show_events(shell: Shell, arguments: Arguments) -> int:
    """`dmesg`: the kernel's event ring."""
    client = await shell.client()
    events = await client.events(limit=MAX_EVENTS)
    is_json, is_following = shell.is_json(arguments), bool(arguments["follow"])
    num_wanted = arguments["lines"] or len(events)
    shown = events[len(events) - min(num_wanted, len(events)) :]
    if is_json and not is_following:
        shell.screen.json(shown)
        return 0
    _print_events(shell, shown, is_json)
    if is_following:
        since = events[-1].sequence + 1 if events else 0
        async for batch in client.follow_events(since):
            _print_events(shell, batch, is_json)
            await shell.screen.drain()
    return 0


def _print_events(shell: Shell, events: Sequence[Event], is_json: bool) -> None:
    for event in events:
        if is_json:
            shell.screen.json(event, one_line=True)
            continue
        when = datetime.fromtimestamp(event.time).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        level = "" if event.level == "info" else f"{event.level}: "
        is_named = event.pid is None or re.search(rf"\b(pid|process) {event.pid}\b", event.text)
        process = "" if is_named else f" (process {event.pid})"
        shell.screen.line(f"[{when}] {event.subsystem}: {level}{event.text}{process}")


def read_seconds(text: str) -> float:
    """Convert a duration. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise ValueError("seconds from 0 to 86400 are needed")
    return seconds


async def shut_down(shell: Shell, arguments: Arguments) -> int:
    """`shutdown`: drain and stop the kernel."""
    client = await shell.client()
    grace = DEFAULT_GRACE_SECONDS if arguments["grace"] is None else arguments["grace"]
    await client.shutdown(grace)
    shell.screen.line(f"the kernel is shutting down; running processes get {grace:g} s")
    return 0


COMMANDS = (
    Command(
        "lsdev",
        summary="List the devices",
        details=(
            "State, what is loaded, running and waiting processes, steps taken, and how often the driver "
            "was restarted."
        ),
        function=list_devices,
        options=(JSON,),
        examples=(("lsdev", "all devices"),),
    ),
    Command(
        "models",
        summary="List the models that are served",
        details="The first is the default.",
        function=list_models,
        options=(JSON,),
        examples=(("models", "names, sizes, and where their files are"),),
    ),
    Command(
        "dmesg",
        summary="Print the kernel's events",
        details="With -f, follow them until Ctrl-C; with --json, -f prints one object a line.",
        function=show_events,
        options=(
            Option(("--follow", "-f"), "wait for new events"),
            Option(("--lines", "-n"), "only the last N events", "N", read_count),
            JSON,
        ),
        examples=(
            ("dmesg -n 20", "the last 20 events"),
            ("dmesg -f | grep driver", "drivers, as it happens"),
        ),
    ),
    Command(
        "shutdown",
        summary="Drain and stop the kernel (administrators)",
        details="Nothing new is admitted, and running processes get some time to finish.",
        function=shut_down,
        options=(
            Option(
                ("--grace",),
                f"how long they get; {DEFAULT_GRACE_SECONDS:g} by default",
                "SECONDS",
                read_seconds,
            ),
        ),
        examples=(("shutdown --grace 5", "running processes get 5 seconds"),),
    ),
)
