"""Handlers of the memory family."""

from __future__ import annotations

from llmos.kernel.inspection import device_memories, frame_maps, map_list
from llmos.kernel.session import Session
from llmos.kernel.system import System
from syscalls.codec import Answer
from syscalls.memory import FrameMapList, Frames, Maps, Meminfo, MemoryInfo


def meminfo(system: System, session: Session, call_id: int, body: Meminfo) -> Answer:
    """See syscalls.memory.Meminfo."""
    return MemoryInfo(device_memories(system, None if session.is_admin else session.tenant))


def maps(system: System, session: Session, call_id: int, body: Maps) -> Answer:
    """See syscalls.memory.Maps."""
    return map_list(system, session.process(body.pid))


def frames(system: System, session: Session, call_id: int, body: Frames) -> Answer:
    """See syscalls.memory.Frames."""
    return FrameMapList(frame_maps(system))
