"""Boot: the only wiring. One line per subsystem, in dependency order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import trio

from drivers.builtin import base_path
from llmos.agreements import make_tenant_reload, make_tenants, open_budgets, socket_mode
from llmos.config import Config, ConfigError
from llmos.device import Progress
from llmos.devices import Devices
from llmos.gateway_options import gateway_options
from llmos.ipc.credentials import listen_unix
from llmos.ipc.supervisor import ChildSpec, Runnable, open_supervisor
from llmos.kernel.driver_host import OpenLink
from llmos.kernel.gateway_process import GatewayProcess
from llmos.kernel.image_store import ImageStore, default_image_folder
from llmos.kernel.server import SyscallServer
from llmos.kernel.system import System
from llmos.loads import first_loads
from llmos.model_loader import ModelLoader
from llmos.models import resolve_model
from llmos.notify import feed_watchdog
from llmos.params import FAREWELL_SECONDS, LAST_READ_SECONDS
from llmos.proc.lifecycle import ProcState
from llmos.sched.messages import Kill
from syscalls.collector import settle_collector
from syscalls.errno import SyscallError
from syscalls.paths import default_socket_path, prepare_socket_directory
from syscalls.realtime import explain_refusal, go_before_others


class Ready(msgspec.Struct, frozen=True):
    """What there is to say when everything serves; `llmos up --ready-fd` writes it as a line of JSON."""

    url: str  # empty: no gateway
    socket_path: str
    model: str
    devices: tuple[str, ...]
    seconds: float  # of the boot


async def boot(
    config: Config,
    device_kind: str,
    on_progress: Callable[[str, Progress], None] | None = None,
    open_link: Callable[[str], OpenLink] | None = None,
    task_status: trio.TaskStatus[tuple[System, Ready]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the kernel until it is told to shut down; started() when everything serves.

    Args:
        config: checked.
        device_kind: "cpu", "cuda" or "sim"; "auto" was decided by the caller.
        on_progress: told how far loads are.
        open_link: for tests: makes the opener of each device's line, given its name.

    Raises:
        ConfigError, NoSuchModel, LoadRefused, GatewayFailed, AddressInUse: boot failed; nothing is left
            running.
    """
    began = trio.current_time()
    if config.realtime:
        claim_realtime()
    socket_path = config.socket or str(default_socket_path())
    model_path = await trio.to_thread.run_sync(resolve_model, config.model, str(base_path()))
    encoder_path = None
    if config.embedding_model is not None:
        encoder_path = await trio.to_thread.run_sync(resolve_model, config.embedding_model, str(base_path()))
    tenants, images = make_tenants(config), make_image_store(config)
    system = System(accounts=tenants.accounts, tenants=tenants, images=images, max_waiting=config.max_waiting)
    shutdown = ShutdownRequest()
    system.request_shutdown = shutdown.request
    warn = partial(system.events.record, "boot", level="warning")
    gateway = None
    await clean_image_store(system)
    prepare_socket_directory(Path(socket_path))
    # First: two kernels on one socket must not both load a model.
    listener = listen_unix(socket_path, socket_mode(tenants))
    try:
        if tenants.has_budgets:
            await trio.to_thread.run_sync(open_budgets, tenants)
        async with open_supervisor() as init:

            async def start(name: str, run: Runnable, stop: Callable[[], None] | None = None) -> None:
                await init.start(ChildSpec(name=name, run=run, stop=stop))

            devices = Devices(config, device_kind, system, start, on_progress, open_link)
            for name, load in first_loads(config, device_kind, model_path, encoder_path).items():
                await devices.add(name, load)  # run queues, memory
            await start("errands", system.errands.run)  # calls that wait for the disk
            server = SyscallServer(system, listener)
            if config.tenants is not None:
                system.reload_tenants = make_tenant_reload(config, system, server, socket_path).reload
            await start("server", server.run, server.stop)  # syscall socket
            async with trio.open_nursery() as starting:
                for name, host in system.hosts.items():  # drivers: all devices load at once
                    starting.start_soon(start, f"host {name}", host.run)
                if config.listen:
                    gateway = GatewayProcess(gateway_options(config, socket_path), system.events)
                    starting.start_soon(start, "gateway", gateway.run)  # the OpenAI door
            loader = ModelLoader(config, device_kind, system, devices.add_empty, devices.opener_of)
            system.load_model = loader.load  # models that come and go
            if tenants.has_budgets:
                keep = partial(tenants.spent.keep, system.errands.run_blocking, warn)
                await start("budgets", keep)  # what is spent of them
            await start("reaper", system.reap_forgotten)  # old zombies
            sweep = partial(system.sweep_idle, config.swap_idle_seconds)
            await start("sweeper", sweep)  # memory of chats that wait for their people
            ready = announce(system, gateway, socket_path, trio.current_time() - began)
            task_status.started((system, ready))
            grace_seconds = await shutdown.wait()
            await drain(system, gateway, grace_seconds)
    finally:
        listener.socket.close()  # perhaps no server has had it
        tenants.spent.close(warn)
        Path(socket_path).unlink(missing_ok=True)  # noqa: ASYNC240 - one call, at the very end


def claim_realtime() -> None:
    """Have this process run before what has ordinary priority. Raises ConfigError."""
    try:
        go_before_others()
    except OSError as error:
        raise ConfigError(explain_refusal(error)) from error


def announce(system: System, gateway: GatewayProcess | None, socket_path: str, seconds: float) -> Ready:
    """Everything serves: say so in the event log, and return what the ready line holds."""
    names = tuple(system.hosts)
    ready = Ready(gateway.url if gateway else "", socket_path, system.models()[0].name, names, seconds)
    system.events.record("boot", f"ready in {seconds:.2f} s: {ready.model} on {', '.join(names)}")
    return ready


async def clean_image_store(system: System) -> None:
    """Delete what a kernel that was killed had begun to save; that it cannot be done does not stop a boot."""
    try:
        num_removed = await trio.to_thread.run_sync(system.images.remove_leftovers)
    except OSError as error:
        text = f"leftovers in {system.images.folder} were not removed: {error.strerror}"
        system.events.record("image", text, level="warning")
    else:
        if num_removed:
            system.events.record("image", f"{num_removed} unfinished images of an earlier kernel removed")


class ShutdownRequest:
    """How long the kernel may still take, once somebody has asked it to stop."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._grace_seconds = 0.0

    def request(self, grace_seconds: float) -> None:
        """Ask. The first one to ask sets the grace."""
        if not self._event.is_set():
            self._grace_seconds = grace_seconds
            self._event.set()

    async def wait(self) -> float:
        """Wait until somebody asks; return the grace in seconds. A checkpoint."""
        await self._event.wait()
        return self._grace_seconds


async def drain(system: System, gateway: GatewayProcess | None, grace_seconds: float) -> None:
    """Admit nothing new, let what runs finish within the grace, end the rest."""
    system.is_draining = True
    system.events.record("boot", f"draining, {grace_seconds:g} s")
    async with trio.open_nursery() as nursery:
        if gateway is not None:
            nursery.start_soon(gateway.stop, grace_seconds)  # it refuses new requests at once, too
        with trio.move_on_after(grace_seconds):
            while any(
                p.state not in (ProcState.ZOMBIE, ProcState.STOPPED)
                and not p.turn_is_over
                and not system.is_asleep(p.device)
                for p in system.table
            ):
                await system.wait_pause()
        for process in system.table:
            if process.state is not ProcState.ZOMBIE:
                system.core_of(process).mailbox.send_nowait(Kill(process, "draining", lambda error: None))
        with trio.move_on_after(FAREWELL_SECONDS):
            while any(process.state is not ProcState.ZOMBIE for process in system.table):
                await system.wait_pause()
    with trio.move_on_after(LAST_READ_SECONDS):
        while any(process.session is not None for process in system.table):
            await system.wait_pause()


def make_image_store(config: Config) -> ImageStore:
    """Where process images lie, from the configuration."""
    folder = Path(config.image_folder).expanduser() if config.image_folder else default_image_folder()
    return ImageStore(folder, config.image_mib << 20 if config.image_mib else None)


async def serve(
    config: Config,
    device_kind: str,
    on_ready: Callable[[Ready], None],
    on_progress: Callable[[str, Progress], None] | None = None,
) -> None:
    """Boot, say so, serve until Ctrl-C, SIGTERM or a shutdown call; a second signal does not wait.

    With a tenants file SIGHUP has it read again.
    """
    obeyed = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if config.tenants is not None else [])]
    with trio.open_signal_receiver(*obeyed) as signals:
        async with trio.open_nursery() as nursery:

            async def obey_signals() -> None:
                num_seen = 0
                async for number in signals:
                    if number == signal.SIGHUP:
                        if systems and systems[0].reload_tenants is not None:
                            with contextlib.suppress(SyscallError):  # it is in the events
                                await systems[0].reload_tenants()
                        continue
                    num_seen += 1
                    if num_seen > 1 or not systems:
                        nursery.cancel_scope.cancel()
                    else:
                        systems[0].request_shutdown(config.shutdown_grace_seconds)

            systems: list[System] = []
            nursery.start_soon(obey_signals)

            async def run(task_status: trio.TaskStatus[tuple[System, Ready]]) -> None:
                await boot(config, device_kind, on_progress, task_status=task_status)
                nursery.cancel_scope.cancel()

            system, ready = await nursery.start(run)
            systems.append(system)
            settle_collector()
            on_ready(ready)
            nursery.start_soon(feed_watchdog)
