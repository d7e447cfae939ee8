"""The syscall table: one row for each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from llmos.kernel import (
    calls_device,
    calls_embedding,
    calls_follow,
    calls_image,
    calls_memory,
    calls_process,
    calls_system,
    calls_tenant,
    calls_trace,
)
from llmos.kernel.session import Session
from llmos.kernel.system import System
from syscalls import device as d
from syscalls import embedding as e
from syscalls import image as i
from syscalls import memory as m
from syscalls import process as p
from syscalls import system as s
from syscalls import tenant as t
from syscalls.codec import Answer, Call, ErrorReply, Request, error_reply
from syscalls.errno import Errno, SyscallError

log = structlog.get_logger("syscall")

Handler = Callable[[System, Session, int, Any], Answer | None]
"""Takes the system, the session, the call's id and its body. Never waits.

Returns the answer, or None when it parked the call or passed it on, and will answer through `Session.reply`.
Raises SyscallError.
"""

TABLE: dict[type[Request], Handler] = {
    p.Spawn: calls_process.spawn,
    p.Fork: calls_process.fork,
    p.Wait: calls_process.wait,
    p.Read: calls_process.read,
    p.Follow: calls_follow.follow,
    p.Grant: calls_follow.grant,
    p.Unfollow: calls_follow.unfollow,
    p.Write: calls_process.write,
    p.Kill: calls_process.kill,
    p.Stop: calls_process.stop,
    p.Cont: calls_process.cont,
    p.Nice: calls_process.nice,
    p.Ps: calls_process.ps,
    p.Stat: calls_process.stat,
    p.Why: calls_process.why,
    p.Trace: calls_trace.trace,
    e.Embed: calls_embedding.embed,
    m.Meminfo: calls_memory.meminfo,
    m.Frames: calls_memory.frames,
    m.Maps: calls_memory.maps,
    m.DropCache: calls_memory.drop_cache,
    t.Whoami: calls_tenant.whoami,
    t.Tenants: calls_tenant.tenants,
    t.Shares: calls_tenant.shares,
    t.ReloadTenants: calls_tenant.reload_tenants,
    i.Checkpoint: calls_image.checkpoint,
    i.Restore: calls_image.restore,
    i.Images: calls_image.images,
    i.RemoveImage: calls_image.remove_image,
    d.Sleep: calls_device.sleep,
    d.Wake: calls_device.wake,
    d.LoadModel: calls_device.load_model,
    d.UnloadModel: calls_device.unload_model,
    s.Devices: calls_system.devices,
    s.Models: calls_system.models,
    s.Events: calls_system.events,
    s.Statistics: calls_system.statistics,
    s.Shutdown: calls_system.shutdown,
    s.Ping: calls_system.ping,
}


class Dispatcher:
    """Carries calls out. A handler's failure is the caller's answer, never the session's end."""

    def __init__(self, system: System) -> None:
        self._system = system

    def carry_out(self, session: Session, call: Call) -> None:
        """Answer a call, or see to it that it will be. Synchronous."""
        if self._system.traces.live:
            calls_trace.note(self._system, session, call)
        try:
            answer = TABLE[type(call.body)](self._system, session, call.id, call.body)
        except SyscallError as error:
            answer = error_reply(error)
        except Exception:
            log.exception("syscall_failed", session=session.id, call=type(call.body).__name__)
            answer = ErrorReply(
                Errno.EFAULT, f"kernel bug in {type(call.body).__name__}; see the kernel's log"
            )
        if answer is not None:
            session.reply(call.id, answer)
