"""`/health`, `/ping`, `/health/ready`, `/version`, `/metrics`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import structlog
import trio

from shell.gateway.errors import ApiError, draining, kernel_lost, unavailable
from shell.gateway.exchange import Exchange
from shell.gateway.replies.server import HealthReport, ReadinessReport, VersionReport
from shell.gateway.service import Endpoint
from shell.gateway.users import hide_others
from syscalls.client import ConnectionLost
from syscalls.errno import SyscallError
from syscalls.system import DeviceInfo

KERNEL_PATIENCE_SECONDS = 8.0  # Prometheus waits for ten; half a page is for a kernel that hangs
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

log = structlog.get_logger("gateway.health")


def find_version() -> str:
    """Return the installed version of llmos."""
    try:
        return version("llmos")
    except PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed


class Health(Endpoint):
    """200 while the kernel is alive, whatever else is wrong."""

    name = "health"
    is_public = True
    answer_type = HealthReport

    async def answer(self, exchange: Exchange) -> None:
        """Ask no one: an open session is a living kernel."""
        if not self.service.link.is_connected:
            raise kernel_lost()
        await exchange.respond_json(200, {"status": "ok"})


class Readiness(Endpoint):
    """200 when a model can serve, else 503 with the reason."""

    name = "health.ready"
    answer_type = ReadinessReport

    async def answer(self, exchange: Exchange) -> None:
        """Look at what the kernel told last."""
        if self.service.admission.is_draining:
            raise draining()
        _ = self.service.link.client
        ready = [model.name for model in self.service.link.models if model.ready]
        if not ready:
            raise unavailable("model_loading", "No model is ready to serve yet.")
        await exchange.respond_json(200, {"status": "ready", "models": ready})


class Version(Endpoint):
    """Tells the gateway's version, and the kernel's when there is one."""

    name = "version"
    is_public = True
    answer_type = VersionReport

    async def answer(self, exchange: Exchange) -> None:
        """Versions may differ while an upgrade is under way."""
        link = self.service.link
        kernel = link.client.welcome.version if link.is_connected else None
        await exchange.respond_json(200, {"version": find_version(), "kernel": kernel})


class MetricsPage(Endpoint):
    """The gateway's counters, then the kernel's, in the Prometheus text format.

    Of tenants and their users an administrator sees all, others their own.
    """

    name = "metrics"
    media_types = (PROMETHEUS,)

    async def answer(self, exchange: Exchange) -> None:
        """Render in a thread; without a kernel the page has the gateway's half only."""
        devices: tuple[DeviceInfo, ...] = ()
        exposition = ""
        try:
            with trio.fail_after(KERNEL_PATIENCE_SECONDS):
                client = self.client_of(exchange)
                if self.service.metrics.vllm is not None:
                    devices = await client.devices()
                exposition = (await client.statistics(exposition=True)).exposition
        except (ApiError, ConnectionLost, SyscallError, trio.TooSlowError) as error:
            log.warning("kernel_metrics_missing", error=str(error))
        text = await trio.to_thread.run_sync(self.service.metrics.render, devices)
        if exchange.client is not None and not exchange.client.welcome.admin:
            text = hide_others(text, exchange.client.welcome.tenant)
        await exchange.respond(200, text + exposition.encode(), PROMETHEUS)
