"""What each driver is told to load, from the configuration."""

from __future__ import annotations

import msgspec

from llmos.config import Config, ConfigError
from llmos.device import Load
from llmos.models import served_name
from native.memory import available_memory_bytes

ENCODER_KIND = "encoder"  # of devices that only make vectors
ENCODER = f"{ENCODER_KIND}:0"  # the device of the encoder that the configuration names
SWAP_SHARE = 8  # all devices' host areas take this part of what is available, as they are written
MAX_DEFAULT_SWAP_BYTES = 4 << 30  # of a device


def encodes(device: str) -> bool:
    """Does a device only make vectors?"""
    return device.startswith(f"{ENCODER_KIND}:")


def first_loads(config: Config, kind: str, model_path: str, encoder_path: str | None) -> dict[str, Load]:
    """What each device is told to load at the start: cpu:0, cpu:1, …, and last an encoder, if there is one.

    The first device's model is the default one. Raises ConfigError: both models have one name.
    """
    load = load_message(config, model_path)
    loads = {f"{kind}:{i}": load for i in range(config.devices)}
    if encoder_path is not None:
        loads[ENCODER] = encoder_load_message(config, load, encoder_path)
    return loads


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
    return as_encoder(msgspec.structs.replace(load, path=encoder_path, name=name))


def as_encoder(load: Load) -> Load:
    """The same model on a device that keeps nothing between texts, and has a context of its own."""
    return msgspec.structs.replace(load, host_bytes=0, disk_bytes=0, max_model_len=None)


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
