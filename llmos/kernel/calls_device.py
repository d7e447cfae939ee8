"""Handlers of the device family."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import trio

from llmos.ipc.mailbox import MailboxClosed
from llmos.kernel.driver_host import DriverHost, HostState
from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.sched import messages
from llmos.sched.core import Core
from syscalls.codec import Answer
from syscalls.device import Sleep, Wake
from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.system import Done


def sleep(system: System, session: Session, call_id: int, body: Sleep) -> Answer | None:
    """See syscalls.device.Sleep."""
    if not session.is_admin:
        raise SyscallError(Errno.EPERM, "sleep is for administrators")
    if body.level not in (1, 2):
        raise invalid_parameter("level", f"is {body.level}; the limit is 1 to 2")
    system.errands.start(session, call_id, partial(_sleep, system, body.level), is_lasting=True)
    return None


def wake(system: System, session: Session, call_id: int, body: Wake) -> Answer | None:
    """See syscalls.device.Wake."""
    if not session.is_admin:
        raise SyscallError(Errno.EPERM, "wake is for administrators")
    system.errands.start(session, call_id, partial(_wake, system), is_lasting=True)
    return None


async def _sleep(system: System, level: int) -> Answer:
    """Put all devices to rest, side by side."""
    errors: list[SyscallError] = []

    async def rest(host: DriverHost) -> None:
        try:
            await (_rest(host.core) if level == 1 and not host.is_asleep else host.sleep())
        except SyscallError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for host in system.hosts.values():
            if host.state is not HostState.FAILED:
                nursery.start_soon(rest, host)
    if errors:
        raise errors[0]
    system.events.record("device", f"asleep, level {level}")
    return Done()


async def _rest(core: Core) -> None:
    """Have a device give up its processes' memory, and wait until it has. Raises SyscallError."""
    ended = trio.Event()
    outcome: list[SyscallError | None] = []

    def done(error: SyscallError | None) -> None:
        outcome.append(error)
        ended.set()

    try:
        core.mailbox.send_nowait(messages.Sleep(done))
    except MailboxClosed:
        raise SyscallError(Errno.ESHUTDOWN, "the kernel is stopping") from None
    await ended.wait()
    if outcome[0] is not None:
        raise outcome[0]


async def _wake(system: System) -> Answer:
    """Wake all devices, side by side."""
    failed: list[str] = []

    async def wake_one(host: DriverHost) -> None:
        with suppress(MailboxClosed):  # the kernel is stopping
            host.core.mailbox.send_nowait(messages.Wake())
        if not await host.wake():
            failed.append(host.name)

    async with trio.open_nursery() as nursery:
        for host in system.hosts.values():
            nursery.start_soon(wake_one, host)
    if failed:
        raise SyscallError(Errno.EIO, f"{', '.join(sorted(failed))} could not be woken; `dmesg` says why")
    system.events.record("device", "awake")
    return Done()
