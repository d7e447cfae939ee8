"""Administrators' routes: drain, sleep, dropping the prefix cache; those not done are refused by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shell.gateway.errors import ApiError, invalid, unavailable
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, read_fields, refused, take_fields
from shell.gateway.json_body import read_json
from shell.gateway.replies.server import (
    CacheReport,
    DrainReport,
    ModelLoadReport,
    ModelUnloadReport,
    SleepReport,
)
from shell.gateway.service import Endpoint
from syscalls.errno import Errno, SyscallError

MAX_GRACE_SECONDS = 86_400.0
DRAIN_FIELDS: FieldTable = implemented("grace_seconds")
# Of vLLM's query: processes are not ended for it, and there is no cache beside the devices' own.
RESET_FIELDS: FieldTable = refused(
    reset_running_requests=("false", "False"), reset_external=("false", "False")
)

# Of vLLM's query: no request is ended for a sleep, and all of a device wakes together.
SLEEP_FIELDS: FieldTable = {**implemented("level"), **refused(mode=("keep",))}
WAKE_FIELDS: FieldTable = refused(tags=())
LOAD_FIELDS: FieldTable = implemented("model", "name")
UNLOAD_FIELDS: FieldTable = implemented("model", "force")


class DrainFields(msgspec.Struct):
    """The body of `/drain`, which may be empty. None: the server's own shutdown timeout."""

    grace_seconds: Annotated[float, Meta(ge=0, le=MAX_GRACE_SECONDS)] | None = None


class AdminEndpoint(Endpoint, ABC):
    """An endpoint for administrators. Without keys that is whoever may open the kernel's socket as one."""

    async def answer(self, exchange: Exchange) -> None:
        """Check the right, then do it. Raises ApiError 403 `permission_denied`."""
        if not self.client_of(exchange).welcome.admin:
            message = f"{exchange.method} {exchange.path} is for administrators."
            raise ApiError(403, "permission_error", "permission_denied", message)
        await self.administrate(exchange)

    @abstractmethod
    async def administrate(self, exchange: Exchange) -> None:
        """Send the response, or raise."""


class Drain(AdminEndpoint):
    """Admits nothing new, lets what runs finish for a while, then stops the server."""

    name = "drain"
    body_type = DrainFields
    answer_type = DrainReport

    async def administrate(self, exchange: Exchange) -> None:
        """Answer when the kernel has begun."""
        body = await read_json(self.service, exchange, is_optional=True)
        fields = read_fields(body, DRAIN_FIELDS, DrainFields, exchange.ignored)
        grace = fields.grace_seconds
        seconds = self.service.config.shutdown_timeout if grace is None else grace
        await self.client_of(exchange).shutdown(seconds)
        await exchange.respond_json(200, {"status": "draining", "grace_seconds": seconds})


class ResetPrefixCache(AdminEndpoint):
    """Gives up every page of the prefix cache that no process maps."""

    name = "reset_prefix_cache"
    answer_type = CacheReport

    async def administrate(self, exchange: Exchange) -> None:
        """Answer when the pages are free."""
        take_fields(dict(exchange.query), RESET_FIELDS, exchange.ignored)
        dropped = await self.client_of(exchange).drop_cache()
        await exchange.respond_json(200, {"num_dropped_pages": dropped.num_pages})


class SleepQuery(msgspec.Struct):
    """Level 1 keeps the weights on the devices, level 2 keeps nothing there."""

    level: Literal["1", "2"] = "1"


class Sleep(AdminEndpoint):
    """Has every device give up what it holds and rest; nobody's process ends."""

    name = "sleep"
    query_struct = SleepQuery
    answer_type = SleepReport

    async def administrate(self, exchange: Exchange) -> None:
        """Answer when all devices are at rest. Raises ApiError 503 where one is not ready for that."""
        query = read_fields(dict(exchange.query), SLEEP_FIELDS, SleepQuery, exchange.ignored)
        try:
            await self.client_of(exchange).sleep(int(query.level))
        except SyscallError as error:
            if error.errno is not Errno.EBUSY:
                raise
            raise unavailable("model_loading", f"Not everything sleeps: {error.message}.") from error
        await self.service.link.refresh()  # so that nothing calls it ready any more
        await exchange.respond_json(200, {"is_sleeping": True})


class WakeUp(AdminEndpoint):
    """Has every device go on, and every process where it was."""

    name = "wake_up"
    answer_type = SleepReport

    async def administrate(self, exchange: Exchange) -> None:
        """Answer when all devices serve."""
        take_fields(dict(exchange.query), WAKE_FIELDS, exchange.ignored)
        await self.client_of(exchange).wake()
        await self.service.link.refresh()  # so that the next request does not find it asleep
        await exchange.respond_json(200, {"is_sleeping": False})


class IsSleeping(AdminEndpoint):
    """Whether every device sleeps."""

    name = "is_sleeping"
    answer_type = SleepReport

    async def administrate(self, exchange: Exchange) -> None:
        """Ask the kernel."""
        devices = await self.client_of(exchange).devices()
        states = {device.state for device in devices if device.state != "failed"}
        await exchange.respond_json(200, {"is_sleeping": states == {"sleeping"}})


class LoadFields(msgspec.Struct):
    """The body of `/models/load`: a folder or file of the server's machine, and what it is to be called."""

    model: Annotated[str, Meta(min_length=1)]
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class UnloadFields(msgspec.Struct):
    """The body of `/models/unload`: a served model by name. `force` ends processes that would keep it."""

    model: Annotated[str, Meta(min_length=1)]
    force: bool = False


class LoadModel(AdminEndpoint):
    """Loads a model beside those that are served."""

    name = "models.load"
    body_type = LoadFields
    answer_type = ModelLoadReport

    async def administrate(self, exchange: Exchange) -> None:
        """Answer when it serves. Raises ApiError 400 where it cannot."""
        body = await read_json(self.service, exchange)
        fields = read_fields(body, LOAD_FIELDS, LoadFields, exchange.ignored)
        with explaining_models():
            loaded = await self.client_of(exchange).load_model(fields.model, fields.name)
        await self.service.link.refresh()  # so that the next request finds it
        report = {"success": True, "model": loaded.model.name, "device": loaded.device}
        await exchange.respond_json(200, report)


class UnloadModel(AdminEndpoint):
    """Gives up a model when its requests have ended."""

    name = "models.unload"
    body_type = UnloadFields
    answer_type = ModelUnloadReport

    async def administrate(self, exchange: Exchange) -> None:
        """Answer when its memory is free. Raises ApiError 400 `conflict` where somebody may keep it."""
        body = await read_json(self.service, exchange)
        fields = read_fields(body, UNLOAD_FIELDS, UnloadFields, exchange.ignored)
        model = await self.service.catalog.find_info(fields.model)
        with explaining_models():
            await self.client_of(exchange).unload_model(model.name, force=fields.force)
        await self.service.link.refresh()
        await exchange.respond_json(200, {"success": True, "model": model.name})


@contextmanager
def explaining_models() -> Iterator[None]:
    """Turn the kernel's refusals of a model into ApiErrors: 400 `invalid_value` or `conflict`."""
    try:
        yield
    except SyscallError as error:
        match error.errno:
            case Errno.EINVAL:
                raise invalid("invalid_value", f"{error.message}.", error.parameter) from error
            case Errno.EBUSY | Errno.EEXIST | Errno.EAGAIN:  # what is, stays so: no reason to try again
                raise invalid("conflict", f"{error.message}.", error.parameter) from error
            case _:
                raise


class Unsupported(AdminEndpoint):
    """A route that other servers have. Refused with the reason, so that nobody believes that it was done."""

    name = "unsupported"

    async def administrate(self, exchange: Exchange) -> None:
        """Refuse. Raises ApiError 400 `unsupported_parameter`: a route has no field, so `param` is null."""
        message = f"{exchange.path} is not supported: {REASONS[exchange.path]}."
        raise invalid("unsupported_parameter", message)


REASONS = {
    **dict.fromkeys(
        (
            "/v1/load_lora_adapter",
            "/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/unload_lora_adapter",
            "/lora-adapters",
        ),
        "this kernel serves no adapters",
    ),
}
