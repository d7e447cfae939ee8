"""Handlers of the device and system families."""

from __future__ import annotations

from functools import partial

from llmos.kernel.calls_tenant import visible_shares
from llmos.kernel.inspection import device_memories
from llmos.kernel.session import Session
from llmos.kernel.system import System
from syscalls.codec import Answer
from syscalls.errno import invalid_parameter
from syscalls.system import (
    DeviceList,
    Devices,
    Done,
    EventList,
    Events,
    ModelList,
    Models,
    Ping,
    Shutdown,
    Statistics,
)  # fmt: skip

MAX_EVENTS = 10_000


def devices(system: System, session: Session, call_id: int, body: Devices) -> Answer:
    """See syscalls.system.Devices."""
    return DeviceList(system.device_infos())


def models(system: System, session: Session, call_id: int, body: Models) -> Answer:
    """See syscalls.system.Models."""
    return ModelList(system.models(), system.loading())


def events(system: System, session: Session, call_id: int, body: Events) -> Answer | None:
    """See syscalls.system.Events."""
    limit = max(0, min(body.limit, MAX_EVENTS))
    found = system.events.since(body.since, limit)
    if found or not body.follow:
        return EventList(found)

    def wake() -> None:
        if news := system.events.since(body.since, limit):
            session.reply(call_id, EventList(news))
        else:
            system.events.follow(wake)  # it waits for a later one

    system.events.follow(wake)
    session.park(call_id, lambda: system.events.unfollow(wake))
    return None


def shutdown(system: System, session: Session, call_id: int, body: Shutdown) -> Answer:
    """See syscalls.system.Shutdown."""
    session.check_admin("shutdown is")
    if not 0 <= body.grace_seconds <= 86_400:
        raise invalid_parameter("grace_seconds", f"is {body.grace_seconds}; the limit is 0 to 86400")
    system.request_shutdown(body.grace_seconds)
    return Done()


def ping(system: System, session: Session, call_id: int, body: Ping) -> Answer:
    """See syscalls.system.Ping."""
    return Done()


def statistics(system: System, session: Session, call_id: int, body: Statistics) -> Answer | None:
    """See syscalls.system.Statistics."""
    if not body.exposition:
        return system.statistics()
    system.errands.start(session, call_id, partial(_render_metrics, system, session), is_lasting=False)
    return None


async def _render_metrics(system: System, session: Session) -> Answer:
    """Write the metrics that a client may see, in a thread."""
    async with session.rendering, system.rendering:  # sessions take turns, however often each asks
        numbers, device_infos = system.statistics(), system.device_infos()
        memory = device_memories(system, session.tenant)
        shares = visible_shares(system, session)
        render = system.metrics.render
        text = await system.errands.run_blocking(render, numbers, device_infos, memory, shares)
    return system.statistics(exposition=text)
