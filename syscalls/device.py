"""Device family: sleep, wake, load, unload."""

from __future__ import annotations

import msgspec

from syscalls.system import Model


class Sleep(msgspec.Struct, frozen=True, tag="sleep"):
    """Have every device come to rest, until `Wake`; replies `Done` when all of them have.

    No process ends, and none notices but by the time: each goes on afterwards with the same tokens. New ones
    are taken, and wait. On level 1 the memory of all processes is copied to lower tiers, or given up where it
    is cheaper to compute again, the prefix cache is dropped, and no step is taken; weights stay. On level 2
    drivers end, and with them all that a device holds: weights, keys and values, and copies of those on lower
    tiers. `Wake` loads the weights again, and processes compute again what they had.

    Errors: EPERM (administrators only), EINVAL (no such level), EBUSY (a device is not ready, or was woken
    before it had come to rest; those that have come to rest stay so).
    """

    level: int = 1  # 1 or 2


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """Have every device that sleeps go on; replies `Done` when all of them serve. One that is awake stays so.

    Errors: EPERM (administrators only), EIO (a device could not load its model again; `dmesg` says why).
    """


class LoadModel(msgspec.Struct, frozen=True, tag="load_model"):
    """Load a model beside those that are served; replies `ModelLoaded` when it serves.

    It gets a device that is empty; where every one has a model, another is added, but on CUDA. An encoder
    gets one of its own kind, which is the processor's. What the configuration says of number formats and
    memory holds for all.

    Errors: EPERM (administrators only), EINVAL (no folder or file of this machine, or it cannot be loaded;
    the message says why), EEXIST (a model of this name is served), EBUSY (no device is empty, and none can be
    added), EAGAIN (there are as many devices as there may be), ESHUTDOWN (draining).
    """

    model: str  # "builtin", a Hugging Face folder, or a GGUF file
    name: str | None = None  # it is served as; None: by its folder or file


class ModelLoaded(msgspec.Struct, frozen=True, tag="model_loaded"):
    """Reply to `LoadModel`."""

    device: str
    model: Model


class UnloadModel(msgspec.Struct, frozen=True, tag="unload_model"):
    """End the drivers of a model; replies `Done` when its devices are empty.

    From the call on nothing new is taken for it. Processes that run are waited for. Those that are stopped or
    wait for input may never end: with `force` they are killed, like all others of the model.

    Errors: EPERM (administrators only), ENOENT (no such model), EBUSY (a device is not ready, is lost
    meanwhile, or a process without an end is there; the model then stays).
    """

    model: str
    force: bool = False
