"""Handlers of the memory family."""

from __future__ import annotations

from functools import partial

from llmos.kernel.asking import send_question
from llmos.kernel.inspection import device_memories, frame_maps, map_list
from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.sched import messages
from syscalls.codec import Answer
from syscalls.memory import (
    CacheDropped,
    DropCache,
    FrameMapList,
    Frames,
    Maps,
    Meminfo,
    MemoryInfo,
)  # fmt: skip


def meminfo(system: System, session: Session, call_id: int, body: Meminfo) -> Answer:
    """See syscalls.memory.Meminfo."""
    return MemoryInfo(device_memories(system, None if session.is_admin else session.tenant))


def maps(system: System, session: Session, call_id: int, body: Maps) -> Answer:
    """See syscalls.memory.Maps."""
    return map_list(system, session.process(body.pid))


def frames(system: System, session: Session, call_id: int, body: Frames) -> Answer:
    """See syscalls.memory.Frames."""
    return FrameMapList(frame_maps(system))


def drop_cache(system: System, session: Session, call_id: int, body: DropCache) -> Answer | None:
    """See syscalls.memory.DropCache."""
    tenant = None if session.is_admin else session.tenant
    errand = partial(_drop_cache, system, tenant, session.tenant)
    system.errands.start(session, call_id, errand, is_lasting=True)
    return None


async def _drop_cache(system: System, tenant: str | None, caller: str) -> Answer:
    """Tell every device, between its steps, and wait for all of them."""
    drop = partial(messages.DropCache, tenant)
    replies = [send_question(core, drop) for core in system.cores.values()]
    num_pages = sum([await reply.wait() for reply in replies])
    if num_pages:
        whose = "everybody's" if tenant is None else "its own"
        system.events.record("cache", f"{caller} dropped {num_pages} pages of the prefix cache, {whose}")
    return CacheDropped(num_pages)
