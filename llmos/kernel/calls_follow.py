"""Handlers of follow, grant and unfollow: a process's output, sent as far as the client's credit goes."""

from __future__ import annotations

from llmos.kernel.checks import check_offset
from llmos.kernel.session import Session
from llmos.kernel.system import System
from syscalls import process as p
from syscalls.errno import invalid_parameter
from syscalls.system import Done


def follow(system: System, session: Session, call_id: int, body: p.Follow) -> None:
    """See syscalls.process.Follow."""
    process = session.process(body.pid)
    check_offset(process, body.offset)
    if body.until < body.offset:
        raise invalid_parameter("until", f"is {body.until}; at least the offset, {body.offset}")
    session.check_room()
    session.followers.begin(call_id, process, body.offset, body.until)


def grant(system: System, session: Session, call_id: int, body: p.Grant) -> Done:
    """See syscalls.process.Grant."""
    follower = session.followers.find(body.call)
    if body.until > follower.until:
        follower.until = body.until
        follower.note()
    return Done()


def unfollow(system: System, session: Session, call_id: int, body: p.Unfollow) -> Done:
    """See syscalls.process.Unfollow."""
    session.followers.remove(session.followers.find(body.call))
    session.tell_listener(body.call, Done())
    return Done()
