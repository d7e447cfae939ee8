"""strace: one process as it lives: the calls that name it, and what the scheduler does with it."""

from __future__ import annotations

from shell.llmsh.commands.generation import read_count
from shell.llmsh.commands.why import MIN_SECONDS, describe
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.render import format_seconds
from shell.llmsh.table import Command
from shell.llmsh.text import make_safe
from syscalls.process import TimelineEntry, TraceEvent

TIME_COLUMNS = 8


async def trace(shell: Shell, arguments: Arguments) -> int:
    """`strace`: follow a process until it ends, or as many events as were asked for."""
    client = await shell.client()
    pid = shell.jobs.resolve_one(arguments.operands[0])
    num_left = arguments["lines"]
    is_json = shell.is_json(arguments)
    since, is_over = 0, False
    while not is_over and num_left != 0:
        found = await client.trace(pid, since, follow=True)
        since, is_over = found.next, found.is_over
        if found.num_lost and is_json:
            shell.screen.json({"num_lost": found.num_lost}, one_line=True)
        elif found.num_lost:
            shell.screen.line(f"({found.num_lost} events before these are lost)")
        for event in found.events[:num_left]:
            if is_json:
                shell.screen.json(event, one_line=True)
            else:
                shell.screen.line(write_event(event))
            num_left = None if num_left is None else num_left - 1
        await shell.screen.drain()
    return 0


def write_event(event: TraceEvent) -> str:
    """Write one event as a line, with the time at which it was over: that is when it is told."""
    took = f" <{format_seconds(event.seconds)}>" if event.seconds >= MIN_SECONDS else ""
    if event.session is not None:
        what = f"{event.kind}({event.text}) = {event.result}, session {event.session}"
    elif event.kind in ("mapped", "unmapped"):
        pages = f"{event.count} page{'' if event.count == 1 else 's'}"
        what = f"{event.kind} {pages}, now for {event.num_tokens} tokens"
    else:
        entry = TimelineEntry(
            event.kind, event.at, event.seconds, event.count, event.num_tokens, event.num_bytes, event.pid,
            event.text,
        )  # fmt: skip
        what = f"{event.kind} {describe(entry)}".rstrip()
    return make_safe(f"{event.at + event.seconds:{TIME_COLUMNS}.3f}  {what}{took}")


COMMANDS = (
    Command(
        "strace",
        summary="Follow a process as it lives",
        operands="PID|%JOB",
        details=(
            "Shows the calls that name it (read, write, stop, fork) with their answers, and what the "
            "scheduler does with it: chunks of the prompt, runs of tokens, pages that are mapped, "
            "preemptions and swaps; each at the second, since its spawn, when it was over. It begins with "
            "what 'why' would tell and ends with the process, or with Ctrl-C. The process never waits for "
            "whoever watches: events that come too fast are lost, and their number is told. Nobody pays "
            "for it when nobody watches."
        ),
        function=trace,
        options=(
            Option(("--lines", "-n"), "leave after so many events", "N", read_count),
            Option(("--json",), "print one object a line"),
        ),
        min_operands=1,
        max_operands=1,
        completes=("pid",),
        examples=(
            ('run "Tell me a story" & strace %1', "from its spawn to its end"),
            ("strace 7 | grep -v read", "what the scheduler does with process 7"),
        ),
    ),
)
