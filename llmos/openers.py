"""How drivers are started, by kind of device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import trio.lowlevel

from drivers.sim import SimDriver
from drivers.sim_model import SimModel
from llmos.config import Config, processors_of, threads_per_device
from llmos.cost import CostModel
from llmos.device import DriverLink
from llmos.kernel.driver_host import OpenLink
from llmos.kernel.driver_link import open_driver
from llmos.loads import encodes
from llmos.models import NoSuchModel


def link_opener(config: Config, kind: str, name: str, model_path: str) -> OpenLink:
    """How a device's driver is started."""
    if kind == "sim":
        return simulated_opener(config, name, model_path)
    if encodes(name):
        return encoder_opener(config, name)
    threads = threads_per_device(config)
    processors = processors_of(config, int(name.rpartition(":")[2]))

    async def open_link() -> DriverLink:
        return await open_driver(kind, name, threads, processors)

    return open_link


def encoder_opener(config: Config, name: str) -> OpenLink:
    """How an encoder's driver is started: on the processor, wherever the model runs."""

    async def open_link() -> DriverLink:
        return await open_driver("encoder", name, threads_per_device(config))

    return open_link


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
            encodes=encodes(name),
        )

    return open_link


def make_sim_model(shape: dict[str, Any]) -> SimModel:
    """What a simulated device computes in place of a model, of which `shape` is the config.json."""
    eos = shape.get("eos_token_id")
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),)
    return SimModel(shape["vocab_size"], eos_ids, eos_every=100)
