"""One line that says why a process is where it is: the last line of `why`."""

from __future__ import annotations

from llmos.proc.activity import WAITS, Activity
from llmos.proc.pcb import Process
from llmos.proc.turn import Preemption, Turn

MIN_SECONDS = 0.05  # a shorter wait is not worth a word
MIN_DECODE_SECONDS = 0.02  # a rate over less means nothing
MIN_SHARE = 0.25  # of the time to the first token: a smaller part did not make the start slow

WAITS_FOR = {
    Activity.QUEUED: "for its turn",
    Activity.MEMORY: "for memory",
    Activity.SWAPPED: "swapped out for want of memory",
    Activity.DEVICE: "for the device to come back",
    Activity.SIBLING: "for the prefill of the process that it shares a prompt with",
    Activity.GRAMMAR: "for the device to compile its grammar",
}


def explain(process: Process, now: float) -> str:
    """Say in one line what the present or the last turn of a process is about, the largest thing first.

    Args:
        process: alive or not, with a timeline that was settled now.
        now: on the kernel's clock.
    """
    timeline, turn = process.timeline, process.timeline.turn
    spent = {each: timeline.seconds[each] - turn.seconds_at_begin[each] for each in Activity}
    parts = [*_how_it_ended(process), *_what_it_does(process, turn, spent, now - timeline.since)]
    is_slow = False
    if turn.first_token_at is not None:
        troubles = _troubles(turn, spent)
        is_slow = bool(troubles)
        parts += troubles or [_normal(process, turn, spent)]
        if is_slow and len(parts) == 1:
            parts.append("nothing else")
    return "; ".join(parts)


def _how_it_ended(process: Process) -> list[str]:
    status = process.status
    if status is None or status.reason not in ("killed", "error"):
        return []
    return [f"{'failed' if status.reason == 'error' else 'killed'}: {status.message or 'no reason given'}"]


def _what_it_does(process: Process, turn: Turn, spent: dict[Activity, float], lasted: float) -> list[str]:
    """What keeps it from putting out tokens at this moment; nothing when it does."""
    activity = process.timeline.activity
    if activity is Activity.INPUT:
        return [f"idle: waits for input, {format_duration(lasted)} so far"]
    if activity is Activity.STOPPED:
        return [f"stopped {format_duration(lasted)} ago"]
    if activity is Activity.BLOCKED:
        return [f"waiting: {process.describe_state}, {format_duration(lasted)} so far"]
    has_begun = turn.first_token_at is not None
    if activity in WAITS:
        waited = lasted if has_begun else sum(spent[wait] for wait in WAITS)
        main = activity if has_begun else max(WAITS, key=lambda wait: spent[wait])
        verb = "waiting to go on" if has_begun else "waiting to start"
        return [f"{verb}: {format_duration(waited)} so far, {_describe_wait(main, turn)}"]
    if has_begun:
        return []
    waits = _slow_start(turn, spent)
    if activity is Activity.ENDED:
        return [*waits, f"ended after {format_duration(sum(spent.values()) - lasted)} without a token"]
    return [
        f"computing its prompt: {process.num_computed} of {len(process.tokens)} tokens are done, "
        f"{format_duration(lasted)} so far",
        *waits,
    ]


def _troubles(turn: Turn, spent: dict[Activity, float]) -> list[str]:
    """What went wrong, as far as it cost time."""
    at_first = turn.seconds_at_first_token
    before = {each: at_first[each] - turn.seconds_at_begin[each] for each in Activity}
    parts = _slow_start(turn, before)
    if turn.num_preempted:
        parts.append(_describe_preemptions(turn))
    elif turn.num_bytes_in:
        size = format_bytes(turn.num_bytes_in)
        parts.append(f"its memory was swapped in, {size} in {format_duration(turn.swap_in_seconds)}")
    if turn.num_device_losses:
        parts.append(f"the device was lost {_times(turn.num_device_losses)}, and its memory with it")
    waited = sum(spent[wait] - before[wait] for wait in WAITS)
    if waited >= MIN_SECONDS:
        main = max(WAITS, key=lambda wait: spent[wait] - before[wait])
        parts.append(f"waited {format_duration(waited)} on the way, {WAITS_FOR[main]}")
    if spent[Activity.STOPPED] >= MIN_SECONDS:
        parts.append(f"was stopped for {format_duration(spent[Activity.STOPPED])}")
    return parts


def _slow_start(turn: Turn, before: dict[Activity, float]) -> list[str]:
    """Whether waiting was a good part of the time to the first token, and what for above all."""
    total = sum(before.values()) - before[Activity.ENDED]
    waited = sum(before[wait] for wait in WAITS)
    if waited < MIN_SECONDS or waited < MIN_SHARE * total:
        return []
    main = max(WAITS, key=lambda wait: before[wait])
    return [
        f"slow to start: waited {format_duration(waited)} of {format_duration(total)} "
        f"{_describe_wait(main, turn)}"
    ]


def _describe_wait(main: Activity, turn: Turn) -> str:
    if turn.busiest is None or main not in (Activity.QUEUED, Activity.MEMORY):
        return WAITS_FOR[main]
    tenant, num_running = turn.busiest
    return f"{WAITS_FOR[main]} behind tenant {tenant} ({num_running} process{'es' * (num_running > 1)})"


def _normal(process: Process, turn: Turn, spent: dict[Activity, float]) -> str:
    assert turn.first_token_at is not None
    verb = "ran normally" if process.turn_is_over else "running normally"
    rate = ""
    if process.num_turn_output > 1 and spent[Activity.DECODE] >= MIN_DECODE_SECONDS:
        rate = f"{(process.num_turn_output - 1) / spent[Activity.DECODE]:.1f} tokens/s, "
    return f"{verb}: {rate}first token after {format_duration(turn.first_token_at - turn.began)}"


def _describe_preemptions(turn: Turn) -> str:
    """Preempted how often, by whom and why, and what became of the memory."""
    rivals = dict.fromkeys(each.by for each in turn.preemptions if each.by is not None)
    text = f"preempted {_times(turn.num_preempted)}"
    if rivals:
        first, *others = rivals
        text += f" by pid {first}"
        if others:
            text += f" and {len(others)} other{'s' * (len(others) > 1)}"
        text += _describe_reason(turn.preemptions)
    if any(each.by is None for each in turn.preemptions):
        text += f"{', and' if rivals else ''} when it wanted more memory and was last in line"
    if turn.num_bytes_out or turn.num_bytes_in:
        swapped = f", {format_bytes(turn.num_bytes_out)} swapped out"
        if turn.num_bytes_in:
            back = "" if turn.num_bytes_in == turn.num_bytes_out else f"{format_bytes(turn.num_bytes_in)} "
            swapped += f" and {back}back in {format_duration(turn.swap_in_seconds)}"
        text += swapped
    if turn.num_lost_tokens:
        text += f", {turn.num_lost_tokens} tokens to be computed again"
    return text


def _describe_reason(preemptions: list[Preemption]) -> str:
    tenants = dict.fromkeys(each.fair_share_of for each in preemptions if each.fair_share_of is not None)
    return f" (fair share of {', '.join(tenants)})" if tenants else ""


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def format_duration(seconds: float) -> str:
    """Write a duration: 0.3 ms, 41 ms, 3.2 s, 4 min 5 s."""
    if 0 < seconds < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def format_bytes(size: int) -> str:
    """Write a size: 512 KiB, 1.9 MiB, 64 MiB."""
    mebibytes = size / (1 << 20)
    if mebibytes >= 10:
        return f"{mebibytes:.0f} MiB"
    return f"{mebibytes:.1f} MiB" if mebibytes >= 1 else f"{size / (1 << 10):.0f} KiB"
