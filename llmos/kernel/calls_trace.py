"""The trace call: follow one process, its syscalls and what the scheduler does with it."""

from __future__ import annotations

from functools import partial

import msgspec
import trio

from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.proc.entry import Entry
from llmos.proc.pcb import Pid, Process
from llmos.proc.trace import Trace
from syscalls import process as p
from syscalls.codec import Answer, Call, ErrorReply, Request
from syscalls.errno import invalid_parameter


def trace(system: System, session: Session, call_id: int, body: p.Trace) -> Answer | None:
    """See syscalls.process.Trace."""
    if not 1 <= body.limit <= p.MAX_TRACE_REPLY:
        raise invalid_parameter("limit", f"is {body.limit}; the limit is 1 to {p.MAX_TRACE_REPLY}")
    if body.since < 0:
        raise invalid_parameter("since", f"is {body.since}; at least 0")
    process = system.traces.ended(body.pid) or session.process(body.pid)
    session.check_right(process)
    now = trio.current_time()
    found = process.trace
    if found is None:
        recorder = system.core_of(process).residents.recorder
        found = system.traces.begin(process, now, recorder.short_seconds(now), body.since)
    found.asked_at = now
    since = min(body.since, found.next_sequence)  # nothing further on is promised that number
    answer = _read(found, since, body.limit)
    if answer.events or answer.is_over or not body.follow:
        return answer
    # In a task: it wakes when the moment is over, so that an end comes in one reply with what went before it.
    system.errands.start(session, call_id, partial(_follow, found, since, body.limit), is_lasting=False)
    return None


async def _follow(found: Trace, since: int, limit: int) -> Answer:
    news = trio.Event()
    found.follow(news.set)
    try:
        await news.wait()
    finally:
        found.unfollow(news.set)
    found.asked_at = trio.current_time()
    return _read(found, since, limit)


def _read(found: Trace, since: int, limit: int) -> p.TraceList:
    events, num_lost = found.since(since, limit)
    following = events[-1].sequence + 1 if events else found.next_sequence
    return p.TraceList(events, following, num_lost, found.has_ended and following == found.next_sequence)


def note(system: System, session: Session, call: Call) -> None:
    """Have a call written down with its answer when it names a process that somebody follows."""
    process = system.traces.live.get(Pid(getattr(call.body, "pid", 0)))
    if process is None or isinstance(call.body, p.Trace):
        return
    began = trio.current_time()
    session.listen(call.id, lambda answer: _note_answer(process, session.id, call.body, answer, began))


def _note_answer(process: Process, session: int, body: Request, answer: Answer, began: float) -> None:
    if process.trace is None:
        return  # nobody follows it any more
    tag = str(body.__struct_config__.tag)
    entry = Entry(tag, began, trio.current_time(), text=describe_call(body))
    process.trace.record(entry, describe_answer(answer), session)


def describe_call(body: Request) -> str:
    """Write a call's arguments that are not its pid and not what they are by default."""
    parts = []
    for field in msgspec.structs.fields(body):
        value = getattr(body, field.name)
        if field.name == "pid" or value == field.default:
            continue
        parts.append(
            f"{field.name}={value!r}" if not isinstance(value, tuple) else f"{len(value)} {field.name}"
        )
    return ", ".join(parts)


def describe_answer(answer: Answer) -> str:
    """Say in a few words what a call returned."""
    match answer:
        case ErrorReply(errno):
            return errno.name
        case p.Output(tokens=tokens, end=end):
            noun = "token" if len(tokens) == 1 else "tokens"
            return f"{len(tokens)} {noun}" + (f", {end.reason}" if end else "")
        case p.Spawned(pids):
            return f"pid {' '.join(map(str, pids))}"
        case p.Waited(status=status):
            return status.reason
        case _:
            return str(answer.__struct_config__.tag)
