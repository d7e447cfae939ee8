"""Handlers of the device family."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from llmos.ipc.mailbox import MailboxClosed
from llmos.kernel.asking import ask
from llmos.kernel.driver_host import DriverHost, HostState
from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.proc.lifecycle import ProcState
from llmos.sched import messages
from llmos.sched.core import Core
from syscalls.codec import Answer
from syscalls.device import LoadModel, ModelLoaded, Sleep, UnloadModel, Wake
from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.system import Done


def sleep(system: System, session: Session, call_id: int, body: Sleep) -> Answer | None:
    """See syscalls.device.Sleep."""
    session.check_admin("sleep is")
    if body.level not in (1, 2):
        raise invalid_parameter("level", f"is {body.level}; the limit is 1 to 2")
    system.errands.start(session, call_id, partial(_sleep, system, body.level), is_lasting=True)
    return None


def wake(system: System, session: Session, call_id: int, body: Wake) -> Answer | None:
    """See syscalls.device.Wake."""
    session.check_admin("wake is")
    system.errands.start(session, call_id, partial(_wake, system), is_lasting=True)
    return None


def load_model(system: System, session: Session, call_id: int, body: LoadModel) -> Answer | None:
    """See syscalls.device.LoadModel."""
    session.check_admin("loading a model is")
    if system.is_draining or system.load_model is None:
        raise SyscallError(Errno.ESHUTDOWN, "the kernel is starting or stopping; nothing is loaded")
    errand = partial(_load_model, system, system.load_model, body)
    system.errands.start(session, call_id, errand, is_lasting=True)
    return None


def unload_model(system: System, session: Session, call_id: int, body: UnloadModel) -> Answer | None:
    """See syscalls.device.UnloadModel."""
    session.check_admin("unloading a model is")
    hosts = [host for host in system.hosts.values() if host.model_name == body.model]
    if not hosts or not body.model:
        raise SyscallError(Errno.ENOENT, f"no model {body.model!r}", parameter="model")
    for host in hosts:
        if host.state is not HostState.READY:
            raise SyscallError(Errno.EBUSY, f"device {host.name} is {host.state.value}, not ready")
    system.errands.start(session, call_id, partial(_unload_model, system, hosts, body), is_lasting=True)
    return None


async def _load_model(
    system: System, load: Callable[[str, str | None], Awaitable[str]], body: LoadModel
) -> Answer:
    device = await load(body.model, body.name)
    name = system.hosts[device].model_name
    (model,) = [model for model in system.models() if model.name == name]
    return ModelLoaded(device, model)


async def _unload_model(system: System, hosts: list[DriverHost], body: UnloadModel) -> Answer:
    """Take nothing new for a model, wait until nobody is left, and end its drivers."""
    for host in hosts:
        host.is_leaving = True
    try:
        await _empty(system, {host.name for host in hosts}, body)
        for host in hosts:
            await host.unload()
    finally:
        for host in hosts:
            host.is_leaving = False
    names = ", ".join(host.name for host in hosts)
    system.events.record("device", f"{body.model} unloaded from {names}")
    return Done()


async def _empty(system: System, devices: set[str], body: UnloadModel) -> None:
    """Wait until no process lives on some devices. Raises SyscallError: EBUSY."""
    while living := [
        process
        for process in system.table
        if process.device in devices and process.state is not ProcState.ZOMBIE
    ]:
        if body.force:
            with suppress(MailboxClosed):  # the kernel is stopping
                for process in living:
                    kill = messages.Kill(process, f"model {body.model} is unloaded", lambda error: None)
                    system.core_of(process).mailbox.send_nowait(kill)
        elif lasting := [p for p in living if p.state is ProcState.STOPPED or p.turn_is_over]:
            raise SyscallError(
                Errno.EBUSY,
                f"{len(lasting)} processes of {body.model} are stopped or wait for input, process "
                f"{lasting[0].pid} among them; force ends them",
            )
        await system.wait_pause()


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
            if host.state not in (HostState.FAILED, HostState.EMPTY):
                nursery.start_soon(rest, host)
    system.note_pause()  # whoever waits for processes need not wait for those on devices that sleep
    if errors:
        raise errors[0]
    system.events.record("device", f"asleep, level {level}")
    return Done()


async def _rest(core: Core) -> None:
    """Have a device give up its processes' memory, and wait until it has. Raises SyscallError."""
    if (error := await ask(core, messages.Sleep)) is not None:
        raise error


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
