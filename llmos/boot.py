"""Boot: the only wiring. One line per subsystem, in dependency order."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.lowlevel

from drivers.builtin import base_path
from drivers.sim import SimDriver
from drivers.sim_model import SimModel
from llmos.config import (
    Config,
    ConfigError,
    listens_beyond_loopback,
    parse_weights,
    processors_of,
    threads_per_device,
)
from llmos.cost import CostModel
from llmos.device import DriverLink, Load, Progress
from llmos.ipc.credentials import listen_unix
from llmos.ipc.supervisor import ChildSpec, open_supervisor
from llmos.kernel.driver_host import DriverHost, OpenLink
from llmos.kernel.driver_link import open_driver
from llmos.kernel.gateway_process import GatewayProcess
from llmos.kernel.image_store import ImageStore, default_image_folder
from llmos.kernel.server import SyscallServer
from llmos.kernel.spent import BudgetsUnreadable, Spent, default_budget_file
from llmos.kernel.system import System
from llmos.kernel.tenant_reload import BadAgreement, TenantReload
from llmos.kernel.tenants import Agreement, Tenants, Terms
from llmos.models import NoSuchModel, resolve_model, served_name
from llmos.params import KEYS_VARIABLE
from llmos.proc.lifecycle import ProcState
from llmos.sched.accounts import Accounts
from llmos.sched.batch import BatchLimits
from llmos.sched.core import Core
from llmos.sched.fair import TokenFair
from llmos.sched.messages import Kill
from llmos.sched.policy import FirstComeFirstServed, ResidencyPolicy
from llmos.sched.preemption import PreemptionCosts
from llmos.sched.rerank import Rerank
from llmos.tenants_file import add_keys, read_tenants
from native.memory import available_memory_bytes
from syscalls.collector import settle_collector
from syscalls.errno import SyscallError
from syscalls.paths import default_socket_path, prepare_socket_directory

SWAP_SHARE = 8  # all devices' host areas take this part of what is available, as they are written
ENCODER = "encoder:0"  # the device that only makes vectors
MAX_DEFAULT_SWAP_BYTES = 4 << 30  # of a device


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
            try:
                await trio.to_thread.run_sync(tenants.spent.open)
            except BudgetsUnreadable as error:
                await listener.aclose()
                raise ConfigError(str(error)) from error
        async with open_supervisor() as init:
            load = load_message(config, model_path)
            loads = dict.fromkeys(device_names(config, device_kind), load)
            if encoder_path is not None:  # last: the first model is the default
                loads[ENCODER] = encoder_load_message(config, load, encoder_path)
            for name, load in loads.items():
                opener = open_link(name) if open_link else link_opener(config, device_kind, name, load.path)
                core = system.cores[name] = make_core(config, name, system)
                core.after_results = system.flush_replies
                system.hosts[name] = DriverHost(
                    core, opener, load, config.step_timeout_seconds, system.events, on_progress
                )
                await init.start(
                    ChildSpec(name=f"core {name}", run=core.run, stop=core.stop)
                )  # run queue, memory
            await init.start(
                ChildSpec(name="errands", run=system.errands.run)
            )  # calls that wait for the disk
            server = SyscallServer(system, listener)
            if config.tenants is not None:
                system.reload_tenants = make_tenant_reload(config, system, server, socket_path).reload
            await init.start(ChildSpec(name="server", run=server.run))  # syscall socket
            async with trio.open_nursery() as starting:
                for name, host in system.hosts.items():  # drivers: all devices load at once
                    starting.start_soon(init.start, ChildSpec(name=f"host {name}", run=host.run))
                if config.listen:
                    gateway = GatewayProcess(gateway_options(config, socket_path), system.events)
                    starting.start_soon(
                        init.start, ChildSpec(name="gateway", run=gateway.run)
                    )  # the OpenAI door
            if tenants.has_budgets:
                keep = partial(tenants.spent.keep, system.errands.run_blocking, warn)
                await init.start(ChildSpec(name="budgets", run=keep))  # what is spent of them
            await init.start(ChildSpec(name="reaper", run=system.reap_forgotten))  # old zombies
            await init.start(
                ChildSpec(name="sweeper", run=partial(system.sweep_idle, config.swap_idle_seconds))
            )  # memory of chats that wait for their people
            ready = announce(system, gateway, socket_path, trio.current_time() - began)
            task_status.started((system, ready))
            grace_seconds = await shutdown.wait()
            await drain(system, gateway, grace_seconds)
    finally:
        tenants.spent.close(warn)
        Path(socket_path).unlink(missing_ok=True)  # noqa: ASYNC240 - one call, at the very end


def make_tenants(config: Config) -> Tenants:
    """Who is agreed what at the start. Raises ConfigError."""
    agreement = read_agreement(config)
    budget_file = Path(config.budget_file).expanduser() if config.budget_file else default_budget_file()
    spent = Spent(budget_file)
    tenants = Tenants(Accounts(agreement.weights), agreement.terms, agreement.default, spent)
    if (
        config.listen
        and listens_beyond_loopback(config.listen)
        and not (tenants.needs_key or config.insecure_no_keys)
    ):
        raise ConfigError(
            f"listen is {config.listen!r}, which other machines reach, and no tenant has a key: give keys in "
            "tenants (see `llmos key`) or in LLMOS_KEYS, listen on 127.0.0.1, or set insecure_no_keys"
        )
    return tenants


def read_agreement(config: Config) -> Agreement:
    """Who is agreed what, by file, environment and weights. Blocks. Raises ConfigError."""
    file = add_keys(os.environ.get(KEYS_VARIABLE, ""), read_tenants(config.tenants))
    weights = parse_weights(config.tenant_weights)
    if twice := sorted(weights.keys() & file.tenant.keys()):
        raise ConfigError(f"the weight of {twice[0]} is in tenant_weights and in {config.tenants}")
    weights |= {name: entry.weight for name, entry in file.tenant.items()}
    terms = {
        name: Terms(
            limits=entry.limits(file.default),
            keys_sha256=entry.keys_sha256,
            uids=entry.uids,
            is_admin=entry.admin,
        )
        for name, entry in file.tenant.items()
    }
    return Agreement(terms=terms, default=file.default.limits(file.default), weights=weights)


def make_tenant_reload(
    config: Config, system: System, server: SyscallServer, socket_path: str
) -> TenantReload:
    """What reads the tenants file again."""

    def read() -> Agreement:
        try:
            return read_agreement(config)
        except ConfigError as error:
            raise BadAgreement(str(error)) from error

    return TenantReload(
        system, server, read, lambda system: Path(socket_path).chmod(socket_mode(system.tenants))
    )


def socket_mode(tenants: Tenants) -> int:
    """Other users of the machine may open the socket if some are named; the kernel turns away the others."""
    return 0o666 if tenants.names_users else 0o600


def announce(system: System, gateway: GatewayProcess | None, socket_path: str, seconds: float) -> Ready:
    """Everything serves: say so in the event log, and return what the ready line holds."""
    system.loaded_at = int(time.time())
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
            while any(  # noqa: ASYNC110 - a look every 50 ms beats an event on every turn's end
                p.state not in (ProcState.ZOMBIE, ProcState.STOPPED) and not p.turn_is_over
                for p in system.table
            ):
                await trio.sleep(0.05)
        for process in system.table:
            if process.state is not ProcState.ZOMBIE:
                system.core_of(process).mailbox.send_nowait(Kill(process, "draining", lambda error: None))
    await trio.sleep(0.05)  # the last replies reach their readers


def gateway_options(config: Config, socket_path: str) -> list[str]:
    """The gateway's command line, from the configuration."""
    options: dict[str, object] = {
        "listen": config.listen,
        "socket": socket_path,
        "sampling-defaults": config.sampling_defaults,
        "tool-parser": config.tool_parser,
        "reasoning-parser": config.reasoning_parser,
        "reasoning-field": config.reasoning_field,
        "max-responses": config.max_responses,
        "response-ttl": config.response_ttl_seconds,
        "max-body-bytes": config.max_body_mib << 20,
        "body-timeout": config.body_timeout_seconds,
        "keep-alive-timeout": config.keep_alive_timeout_seconds,
        "sse-ping-interval": config.sse_ping_interval,
        "send-timeout": config.send_timeout_seconds,
        "shutdown-timeout": config.shutdown_grace_seconds,
        "priority-order": config.priority_order,
        "metrics-compat": config.metrics_compat,
        "log-level": config.log_level,
        "log-format": config.log_format,
    }
    if config.max_uploads_mib is not None:
        options["max-uploads-bytes"] = config.max_uploads_mib << 20
    if config.response_folder is not None:
        options["response-folder"] = config.response_folder
    switches = ["--allow-chat-template"] if config.allow_chat_template else []
    switches += ["--timings"] if config.timings else []
    if config.insecure_no_keys:
        switches.append("--insecure-no-keys")
    if config.tls_cert is not None and config.tls_key is not None:
        options |= {"tls-cert": config.tls_cert, "tls-key": config.tls_key}
    switches += [
        f"--cors-origin={origin.strip()}" for origin in config.cors_origins.split(",") if origin.strip()
    ]
    return [f"--{name}={value}" for name, value in options.items()] + switches


def device_names(config: Config, kind: str) -> list[str]:
    """cpu:0, cpu:1, …"""
    return [f"{kind}:{i}" for i in range(config.devices)]


def make_policy(config: Config, accounts: Accounts) -> ResidencyPolicy:
    """The policy that the configuration names; each device has its own, and all have one set of accounts."""
    match config.policy:
        case "fair":
            return TokenFair(accounts, config.fair_quantum)
        case "rerank":
            return Rerank(config.rerank_steps, config.rerank_seed, config.rerank_pattern)
        case _:
            return FirstComeFirstServed()


def make_image_store(config: Config) -> ImageStore:
    """Where process images lie, from the configuration."""
    folder = Path(config.image_folder).expanduser() if config.image_folder else default_image_folder()
    return ImageStore(folder, config.image_mib << 20 if config.image_mib else None)


def make_core(config: Config, name: str, system: System) -> Core:
    """A device's run queue, limits and policy, from the configuration."""
    limits = BatchLimits(
        max_step_tokens=config.max_step_tokens,
        max_rows=config.max_running,
        max_chunk_tokens=config.max_chunk_tokens or config.max_step_tokens,
        target_seconds=config.step_target_ms / 1e3,
        steps_in_flight=config.steps_in_flight,
    )
    return Core(
        name,
        make_policy(config, system.accounts),
        system.accounts,
        limits,
        config.max_running,
        num_spaces(config),
        system.on_exit,
        config.prefix_cache and name != ENCODER,  # it keeps nothing of a text
        config.cache_policy,
        PreemptionCosts(config.preempt, config.switching, config.max_step_tokens),
        config.swap_reuse,
        partial(system.events.record, level="warning"),
        config.mapping,
    )


def load_message(config: Config, model_path: str) -> Load:
    """What each driver is told to load."""
    return Load(
        path=model_path,
        name=config.name or ("llmos-base" if config.model == "builtin" else served_name(model_path)),
        weights=config.weights,
        kv=config.kv,
        pool_bytes=config.pool_mib << 20 if config.pool_mib else None,
        frame_bytes=config.frame_kib << 10 if config.frame_kib else None,
        max_spaces=num_spaces(config),
        max_model_len=config.max_model_len,
        max_step_tokens=config.max_step_tokens,
        max_divergence=config.max_divergence,
        quality_text=config.quality_text,
        host_bytes=swap_bytes(config),
        disk_bytes=config.swap_file_mib << 20,
        disk_folder=config.swap_folder,
        copy_piece_bytes=config.swap_piece_kib << 10 if config.swap_piece_kib else None,
    )


def encoder_load_message(config: Config, load: Load, encoder_path: str) -> Load:
    """What the encoder's driver is told to load, beside the model.

    Raises ConfigError: both models have one name.
    """
    name = config.embedding_name or served_name(encoder_path)
    if name == load.name:
        raise ConfigError(f"the model and the encoder are both called {name!r}: set embedding_name")
    return msgspec.structs.replace(
        load, path=encoder_path, name=name, host_bytes=0, disk_bytes=0, max_model_len=None
    )


def swap_bytes(config: Config) -> int:
    """Host memory that a device may swap to: what is asked for, or a share of what there is.

    The memory of a simulated device is not that of the machine it is simulated on: it has what is asked for.
    """
    if config.swap_mib is not None:
        return config.swap_mib << 20
    if config.device == "sim":
        return 0
    return min(available_memory_bytes() // (SWAP_SHARE * config.devices), MAX_DEFAULT_SWAP_BYTES)


def num_spaces(config: Config) -> int:
    """Address spaces of a device: those who run, and as many again who only hold memory."""
    return 2 * config.max_running


def make_sim_model(shape: dict[str, Any]) -> SimModel:
    """What a simulated device computes in place of a model, of which `shape` is the config.json."""
    eos = shape.get("eos_token_id")
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),)
    return SimModel(shape["vocab_size"], eos_ids, eos_every=100)


def simulated_opener(config: Config, name: str, model_path: str) -> OpenLink:
    """A simulated device that speaks the vocabulary of a real model, so that its text can be decoded.

    Raises NoSuchModel: the model is no folder; only drivers make a tokenizer of a GGUF file.
    """
    if not Path(model_path).is_dir():
        raise NoSuchModel(f"{model_path}: a simulated device needs a Hugging Face folder")
    shape = msgspec.json.decode((Path(model_path) / "config.json").read_bytes())
    model = make_sim_model(shape)

    async def open_link() -> DriverLink:
        await trio.lowlevel.checkpoint()
        return SimDriver(
            name=name,
            model=model,
            max_model_len=shape["max_position_embeddings"],
            cost=CostModel(base=config.sim_step_ms / 1e3),
            num_frames=32_768,
            encodes=name == ENCODER,
        )

    return open_link


def link_opener(config: Config, kind: str, name: str, model_path: str) -> OpenLink:
    """How a device's driver is started."""
    if kind == "sim":
        return simulated_opener(config, name, model_path)
    if name == ENCODER:
        return encoder_opener(config)
    threads = threads_per_device(config)
    processors = processors_of(config, int(name.rpartition(":")[2]))

    async def open_link() -> DriverLink:
        return await open_driver(kind, name, threads, processors)

    return open_link


def encoder_opener(config: Config) -> OpenLink:
    """How the encoder's driver is started: on the processor, wherever the model runs."""

    async def open_link() -> DriverLink:
        return await open_driver("encoder", ENCODER, threads_per_device(config))

    return open_link


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
