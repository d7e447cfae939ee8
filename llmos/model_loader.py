"""Models that come while the kernel runs: each gets a device of its kind that has none, or a new one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import msgspec
import trio

from drivers.builtin import base_path
from drivers.encoder.config import is_encoder
from llmos.config import Config
from llmos.device import Load
from llmos.errors import LlmosError
from llmos.kernel.driver_host import DriverHost, OpenLink
from llmos.kernel.system import System
from llmos.loads import ENCODER_KIND, as_encoder, load_message
from llmos.models import NoSuchModel, resolve_model, served_name
from syscalls.errno import Errno, SyscallError, invalid_parameter

MAX_DEVICES = 64  # with those that the kernel was started with


@attrs.define(eq=False)
class ModelLoader:
    """Finds a model's files and a device for it.

    Args:
        config: for all that a load message says besides the model.
        device_kind: of the devices that models run on.
        system: has the devices.
        add_device: makes an empty device of this name, and starts it.
        open_link: makes the opener of a device's line, given its name and the model's path.
    """

    config: Config
    device_kind: str
    system: System
    add_device: Callable[[str], Awaitable[DriverHost]]
    open_link: Callable[[str, str], OpenLink]
    _loading: trio.Lock = attrs.field(factory=trio.Lock)  # one at a time: two would want one device

    async def load(self, model: str, name: str | None) -> str:
        """Load a model, and return the device that has it.

        Raises:
            SyscallError: EINVAL (no such folder or file, or its driver refuses it), EEXIST (one of this name
                is served), EBUSY (no device is free), EAGAIN (there are as many devices as may be).
        """
        load, encodes = await self._describe(model, name)
        announced = self.system.announced
        announced.append(load.name)
        try:
            async with self._loading:
                if any(host.model_name == load.name for host in self.system.hosts.values()):
                    message = f"a model called {load.name!r} is served"
                    raise SyscallError(Errno.EEXIST, message, parameter="name")
                host = await self._find_device(ENCODER_KIND if encodes else self.device_kind)
                try:
                    await host.load(load, self.open_link(host.name, load.path))
                except LlmosError as error:
                    raise SyscallError(Errno.EINVAL, f"{model}: {error}", parameter="model") from error
                await host.core.has_loaded.wait()
                return host.name
        finally:
            announced.remove(load.name)

    async def _describe(self, model: str, name: str | None) -> tuple[Load, bool]:
        """What is to be loaded, and whether it is an encoder."""
        folder = trio.Path(model)
        if model != "builtin" and not await (await folder.expanduser()).exists():
            raise invalid_parameter("model", f"is {model!r}, which is no folder or file of this machine")
        find = partial(resolve_model, model, str(base_path()))
        try:
            path = await self.system.errands.run_blocking(find)
        except NoSuchModel as error:
            raise SyscallError(Errno.EINVAL, str(error), parameter="model") from error
        default = "llmos-base" if model == "builtin" else served_name(path)
        # Of this model nothing is configured but what holds for all of them.
        config = msgspec.structs.replace(self.config, name=name or default)
        load = load_message(config, path)
        encodes = await self.system.errands.run_blocking(partial(is_encoder, path))
        return (as_encoder(load) if encodes else load), encodes

    async def _find_device(self, kind: str) -> DriverHost:
        """An empty device of a kind, perhaps a new one. Raises SyscallError."""
        hosts = self.system.hosts
        alike = {name: host for name, host in hosts.items() if name.startswith(f"{kind}:")}
        for host in alike.values():
            if host.is_empty:
                return host
        if kind == "cuda":
            raise SyscallError(Errno.EBUSY, f"none of {len(alike)} devices is empty; unload a model first")
        if len(hosts) >= MAX_DEVICES:
            raise SyscallError(Errno.EAGAIN, f"there are {len(hosts)} devices; the limit is {MAX_DEVICES}")
        numbers = [int(name.rpartition(":")[2]) for name in alike]
        return await self.add_device(f"{kind}:{max(numbers, default=-1) + 1}")
