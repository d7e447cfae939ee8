"""why: what happened to a process, where its time went, and the reason in one line."""

from __future__ import annotations

from rich.text import Text

from shell.llmsh.listing import Column, Listing, make_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments
from shell.llmsh.render import format_bytes, format_seconds
from shell.llmsh.table import JSON, Command
from shell.llmsh.text import make_safe
from syscalls.process import TimelineEntry, WhyInfo

MIN_SECONDS = 0.0005  # less is shown as nothing


async def explain(shell: Shell, arguments: Arguments) -> int:
    """`why`: the timeline of a process and the verdict."""
    client = await shell.client()
    info = await client.why(shell.jobs.resolve_one(arguments.operands[0]))
    if shell.is_json(arguments):
        shell.screen.json(info)
        return 0
    lines = [f"spent: {describe_seconds(info.seconds)}", f"verdict: {make_safe(info.verdict)}"]
    if info.num_dropped:
        lines.insert(0, f"({info.num_dropped} earlier entries are forgotten)")
    shell.screen.show(make_timeline(info), Text("\n".join(["", *lines])))
    return 0


def make_timeline(info: WhyInfo) -> Listing:
    """Lay out a timeline, one entry a row."""
    columns = (Column("AT", True), Column("TOOK", True), Column("WHAT"), Column("DETAIL", is_flexible=True))
    rows = [
        (
            f"+{format_seconds(entry.at)}",
            format_seconds(entry.seconds) if entry.seconds >= MIN_SECONDS else "",
            entry.kind,
            describe(entry),
        )
        for entry in info.entries
    ]
    return make_table(columns, rows)


def describe(entry: TimelineEntry) -> str:
    """Say in words what an entry's numbers mean."""
    tokens, text = _count(entry.num_tokens, "token"), entry.text
    match entry.kind:
        case "spawned":
            return "" if entry.pid is None else f"from pid {entry.pid}"
        case "queued":
            parts = [f"{_count(entry.count, 'other')} waited"] if entry.count else []
            return "; ".join([*parts, *([f"most that ran were {text}'s"] if text else [])])
        case "admitted":
            return f"{tokens} in memory already" if entry.num_tokens else ""
        case "prefill":
            return f"{tokens} in {_count(entry.count, 'chunk')}"
        case "decoding":
            if entry.num_tokens < 2 or entry.seconds < MIN_SECONDS:
                return tokens
            return f"{tokens}, {(entry.num_tokens - 1) / entry.seconds:.1f} tokens/s"
        case "preempted":
            again = f"{tokens} to compute again" if entry.num_tokens else ""
            return "; ".join(filter(None, ("" if entry.pid is None else f"for pid {entry.pid}", text, again)))
        case "swapped out" | "swapped in":
            way = "to" if entry.kind == "swapped out" else "from"
            copies = f" in {entry.count} copies" if entry.count > 1 else ""
            return f"{format_bytes(entry.num_bytes)} {way} {text}{copies}"
        case "device lost":
            return f"{tokens} to compute again"
        case "input":
            return tokens
        case _:
            return text


def describe_seconds(seconds: dict[str, float]) -> str:
    """Say what time was spent on, most first, with its share; less than half a percent is not told."""
    total = sum(seconds.values())
    spent = sorted(((time, name) for name, time in seconds.items()), reverse=True)
    return ", ".join(
        f"{name} {format_seconds(time)} ({time / total:.0%})"
        for time, name in spent
        if time > max(MIN_SECONDS, 0.005 * total)
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


COMMANDS = (
    Command(
        "why",
        summary="Tell why a process is where it is",
        operands="PID|%JOB",
        details=(
            "When it waited, and for whom; what it computed; who took its memory and how it came back; what"
            " its time was spent on; and a verdict in one line."
        ),
        function=explain,
        options=(JSON,),
        min_operands=1,
        max_operands=1,
        completes=("pid",),
        examples=(("why 7", "what took process 7 so long"),),
    ),
)
