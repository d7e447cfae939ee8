"""Runs of `llmos bench switch` on a real device: a whole kernel and its driver, over the syscall socket."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

from llmos.bench.chats import hold_all
from llmos.bench.client_chat import open_client_chat
from llmos.bench.conversations import Conversation
from llmos.bench.in_process import booted
from llmos.bench.switch_run import SwitchRun
from llmos.config import Config, ConfigError
from llmos.device import KVFormat, Tier
from syscalls.client import open_client

NEVER_SECONDS = 1e9


@attrs.frozen
class RealMachine:
    """A device of this machine with a model on it.

    Args:
        name: in the report.
        options: fields of Config that every run shares: device, model, formats, threads.
        kv: as the driver lays it out.
        num_layers: of the model.
        vocab_size: of the model.
        context: longest, in tokens.
        tier: that memory is swapped out to; the other one is not there.
    """

    name: str
    options: dict[str, Any]
    kv: KVFormat
    num_layers: int
    vocab_size: int
    context: int
    tier: Tier = "host"

    def below(self, mib: int) -> dict[str, Any]:
        """Fields of Config for so much of the tier, and nothing of the other one."""
        is_host = self.tier == "host"
        return {"swap_mib": mib if is_host else 0, "swap_file_mib": 0 if is_host else mib}

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values in all layers."""
        return sum(segment.bytes_per_token for segment in self.kv.segments)

    def block_bytes(self, num_tokens: int) -> int:
        """Of so many tokens of one layer, keys or values."""
        return num_tokens * self.kv.segments[0].bytes_per_token // self.num_layers


def hold(
    machine: RealMachine,
    conversations: Sequence[Conversation],
    options: dict[str, Any],
    pool_mib: int | None,
    most_seconds: float = math.inf,
) -> SwitchRun:
    """Hold conversations in real time with a kernel that is configured so; see `hold_all`."""
    return trio.run(_hold, machine, conversations, options, pool_mib, most_seconds)


async def _hold(
    machine: RealMachine,
    conversations: Sequence[Conversation],
    options: dict[str, Any],
    pool_mib: int | None,
    most_seconds: float,
) -> SwitchRun:
    config = Config(
        **machine.options, **options, pool_mib=pool_mib, max_model_len=machine.context,
        swap_idle_seconds=NEVER_SECONDS,
    )  # fmt: skip
    async with booted(config, config.device) as (system, socket_path), open_client(socket_path) as client:
        open_chat = partial(open_client_chat, client)
        held = await hold_all(conversations, machine.vocab_size, open_chat, most_seconds=most_seconds)
        (core,) = system.cores.values()
        return SwitchRun.of(held, core.statistics())


def mean_live_tokens(conversations: Sequence[Conversation], seconds_per_token: float) -> float:
    """Context of all conversations that live at a time, on average from the first start to the last.

    A turn counts whole, with its answer, from when it is asked.

    Args:
        conversations: with their starts and pauses.
        seconds_per_token: that an answer takes.
    """
    until = max(conversation.starts_at for conversation in conversations)
    total = 0.0
    for conversation in conversations:
        now, length = conversation.starts_at, 0
        for turn in conversation.turns:
            later = now + turn.pause_seconds
            total += length * max(0.0, min(until, later) - min(until, now))
            length += turn.num_input_tokens
            now, later = later, later + turn.num_output_tokens * seconds_per_token
            length += turn.num_output_tokens
            total += length * max(0.0, min(until, later) - min(until, now))
            now = later
    return total / until if until else sum(c.num_tokens for c in conversations)


def describe(options: dict[str, Any], tier: Tier = "host") -> RealMachine:
    """Boot once, and see what the device and the model are.

    Args:
        options: fields of Config.
        tier: that memory is to be swapped out to.

    Raises:
        ConfigError: the model is no folder, so its number of layers is not known.
    """
    return trio.run(_describe, options, tier)


async def _describe(options: dict[str, Any], tier: Tier) -> RealMachine:
    config = Config(**options)
    async with booted(config, config.device) as (system, _):
        (core,) = system.cores.values()
        assert core.loaded is not None
        model, kv = core.loaded.model, core.loaded.kv
    shape = Path(model.path) / "config.json"
    if not shape.is_file():
        raise ConfigError(f"{model.path} has no config.json; bench switch needs a Hugging Face folder")
    num_layers = msgspec.json.decode(shape.read_bytes())["num_hidden_layers"]
    name = f"{core.name.partition(':')[0]}, {model.name} {model.dtype} kv {kv.name}"
    name += "" if tier == "host" else ", swap file"
    options = options | {"weights": model.dtype, "kv": kv.name}  # what "auto" found need not be found again
    return RealMachine(name, options, kv, num_layers, model.vocab_size, model.max_model_len, tier)
