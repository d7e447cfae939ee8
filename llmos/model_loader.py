"""Models that come while the kernel runs: each gets a device that has none, or a new one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import msgspec
import trio

from drivers.builtin import base_path
from llmos.config import Config
from llmos.device import Load
from llmos.errors import LlmosError
from llmos.kernel.driver_host import DriverHost, OpenLink
from llmos.kernel.system import System
from llmos.loads import ENCODER, load_message
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
        async with self._loading:
            load = await self._describe(model, name)
            if any(host.model_name == load.name for host in self.system.hosts.values()):
                raise SyscallError(Errno.EEXIST, f"a model called {load.name!r} is served", parameter="name")
            host = await self._find_device()
            try:
                await host.load(load, self.open_link(host.name, load.path))
            except LlmosError as error:
                raise SyscallError(Errno.EINVAL, f"{model}: {error}", parameter="model") from error
            await host.core.has_loaded.wait()
            return host.name

    async def _describe(self, model: str, name: str | None) -> Load:
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
        return load_message(config, path)

    async def _find_device(self) -> DriverHost:
        hosts = self.system.hosts
        for host in hosts.values():
            if host.is_empty and host.name != ENCODER:
                return host
        if self.device_kind == "cuda":
            raise SyscallError(Errno.EBUSY, f"none of {len(hosts)} devices is empty; unload a model first")
        if len(hosts) >= MAX_DEVICES:
            raise SyscallError(Errno.EAGAIN, f"there are {len(hosts)} devices; the limit is {MAX_DEVICES}")
        numbers = [int(each.rpartition(":")[2]) for each in hosts if each != ENCODER]
        return await self.add_device(f"{self.device_kind}:{max(numbers) + 1}")
