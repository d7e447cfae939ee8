"""The gateway as an operating-system process: its socket, its tasks, and how it ends.

SIGTERM or SIGINT drains: nothing new is admitted, what runs may finish until the shutdown timeout, the rest
is told `draining`. A second signal ends the process at once; the kernel ends the session's processes.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
from functools import partial

import structlog
import trio

from shell.gateway.app import make_app
from shell.gateway.config import GatewayConfig
from shell.gateway.http1 import App, Connection
from shell.gateway.response_prepare import prepare_again
from shell.gateway.service import Service, make_service
from shell.gateway.tls import TlsCodec, make_server_context
from syscalls.collector import settle_collector

FIRST_SESSION_SECONDS = 5.0  # for the kernel to open it, before a gateway that starts is ready all the same
CLOSE_SECONDS = 1.0  # for connections that are idle, or stalled, when everything else is done
SEND_BUFFER_BYTES = 256 << 10  # what a slow reader may leave lying in the system, for each connection
BACKLOG = 1024

log = structlog.get_logger("gateway")


def open_socket(config: GatewayConfig) -> socket.socket:
    """Bind the listening socket. Raises OSError.

    Connections inherit TCP_USER_TIMEOUT: without it a client that stops reading holds its task, and the
    shutdown, for ever, since a write that has begun is not cancelled.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = max(1, int(config.send_timeout * 1000))
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def describe_address(listener: socket.socket) -> str:
    """Return HOST:PORT of a bound socket, an IPv6 host in brackets."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve_http(
    app: App,
    listener: socket.socket,
    stop: trio.Event,
    keep_alive_timeout: float,
    tls: ssl.SSLContext | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP/1.1, over TLS where there is a context, until `stop`; then end connections, soon."""
    connections: set[Connection] = set()

    async def handle(stream: trio.SocketStream) -> None:
        codec = None if tls is None else TlsCodec(tls)
        connection = Connection(stream, app, keep_alive_timeout, codec)
        connections.add(connection)
        try:
            await connection.run()
        finally:
            connections.discard(connection)

    async with trio.open_nursery() as handling:
        async with trio.open_nursery() as accepting:
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            await accepting.start(partial(trio.serve_listeners, handle, listeners, handler_nursery=handling))
            task_status.started()
            await stop.wait()
            accepting.cancel_scope.cancel()
        handling.cancel_scope.deadline = trio.current_time() + CLOSE_SECONDS
        for connection in connections:
            connection.stop()


async def _watch_signals(service: Service, stop: trio.Event) -> None:
    """Drain on the first signal, end on the second."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            async for number in signals:
                if service.admission.is_draining:
                    log.warning("ended_at_once", signal=number)
                    os._exit(1)  # writes to stalled clients cannot be cancelled: nothing else is sure to end
                statistics = service.admission.statistics()
                log.info("draining", signal=number, num_in_flight=statistics.num_in_flight)
                nursery.start_soon(_drain, service, stop)


async def _watch_life_line(service: Service, stop: trio.Event, descriptor: int) -> None:
    """Drain when the kernel that started us is gone, however it went: the next one brings its own gateway."""
    await trio.lowlevel.wait_readable(descriptor)
    log.warning("kernel_gone", message="draining")
    await _drain(service, stop)


async def _drain(service: Service, stop: trio.Event) -> None:
    # Requests that are told `draining` at the deadline may hang in a write; the system breaks it after the
    # send timeout, and the process need not wait for that.
    with trio.move_on_after(service.config.shutdown_timeout + CLOSE_SECONDS):
        await service.admission.drain(service.config.shutdown_timeout)
        # In the background nobody waits but the store. What is not over in time stays in the making: in a
        # kernel that lives it goes on, and the gateway that follows takes it up.
        await service.responses.wait_idle()
    stop.set()
    await trio.sleep(2 * CLOSE_SECONDS)
    log.warning("connections_stalled", message="left behind: their clients read nothing")
    os._exit(0)


async def run_gateway(config: GatewayConfig) -> None:
    """Serve until a signal, then drain. Raises OSError when the address cannot be bound."""
    tls = None
    if config.tls_cert is not None and config.tls_key is not None:
        tls = make_server_context(config.tls_cert, config.tls_key)
    service = make_service(config)
    listener = open_socket(config)
    url = f"{'http' if tls is None else 'https'}://{describe_address(listener)}"
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(service.sessions.run)
        await nursery.start(service.responses.run)
        await nursery.start(service.bodies.run)
        nursery.start_soon(service.link.run)
        nursery.start_soon(service.responses.recover, partial(prepare_again, service))
        nursery.start_soon(service.catalog.warm)
        nursery.start_soon(_watch_signals, service, stop)
        if config.life_fd is not None:
            nursery.start_soon(_watch_life_line, service, stop, config.life_fd)

        async def serve(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            await serve_http(
                make_app(service), listener, stop, config.keep_alive_timeout, tls, task_status=task_status
            )
            nursery.cancel_scope.cancel()

        await nursery.start(serve)
        with trio.move_on_after(FIRST_SESSION_SECONDS):  # whoever hears that we are ready is served at once
            await service.link.wait_tried()
        log.info("ready", url=url, pid=os.getpid())
        if config.ready_fd is not None:
            with os.fdopen(config.ready_fd, "w") as ready:
                ready.write(f"{url}\n")
        settle_collector()
    log.info("stopped")
