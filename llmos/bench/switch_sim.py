"""One run of `llmos bench switch` on a simulated device: the kernel's own code, on the virtual clock.

The device is what FastSwitch was measured on, an A10 with a model of 8 billion parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import trio
import trio.testing

from drivers.sim import SimDriver, SimModel
from llmos.bench.chats import hold_all
from llmos.bench.conversations import Conversation
from llmos.bench.in_process import booted, settle_order
from llmos.bench.inside_chat import open_inside_chat
from llmos.bench.switch_run import SwitchRun
from llmos.config import Config
from llmos.cost import CopyCost, CostModel
from llmos.device import DriverLink, KVFormat, Segment
from llmos.kernel.driver_host import OpenLink


@attrs.frozen
class Machine:
    """A simulated device, in real units."""

    name: str
    kv: KVFormat
    pool_tokens: int  # that its memory for keys and values holds
    cost: CostModel
    copy_cost: CopyCost
    context: int
    host_mib: int
    block_bytes: int  # of 16 tokens of one layer, keys or values

    @property
    def num_frames(self) -> int:
        """Of the pool."""
        return self.pool_tokens // self.kv.tokens_per_page * self.kv.frames_per_page


# 32 layers, 8 key heads of 128 numbers of 2 bytes: 64 KiB of keys and as much of values for each token. A
# step reads the weights in 29 ms; a token costs 16 GFLOP, for which the card's tensor cores take 0.18 ms.
A10 = Machine(
    name="8B on A10",
    kv=KVFormat("fp16", (Segment("K", 64 << 10), Segment("V", 64 << 10)), 2 << 20, 32),
    pool_tokens=36_000,
    cost=CostModel(base=0.029, per_token=0.18e-3, per_context_token=0.22e-6),
    copy_cost=CopyCost(base=2.5e-6, bytes_per_second=24e9),
    context=8192,
    host_mib=60_000,
    block_bytes=32 << 10,
)
MODEL = SimModel(vocab_size=512)
NEVER_SECONDS = 1e9  # memory of those who wait for input goes when somebody needs it, not by itself


def simulate(
    machine: Machine,
    conversations: Sequence[Conversation],
    options: dict[str, Any],
    most_seconds: float = math.inf,
) -> SwitchRun:
    """Hold conversations with a kernel that is configured so; takes no longer than the computing does.

    Args:
        machine: the device.
        conversations: from `make_conversations`, within the machine's context.
        options: fields of Config.
        most_seconds: of the virtual clock; see `hold_all`.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_simulate, machine, conversations, options, most_seconds, clock=clock)


async def _simulate(
    machine: Machine,
    conversations: Sequence[Conversation],
    options: dict[str, Any],
    most_seconds: float,
) -> SwitchRun:
    def open_link(name: str) -> OpenLink:
        async def open_one() -> DriverLink:
            await trio.lowlevel.checkpoint()
            return SimDriver(
                name=name,
                cost=machine.cost,
                num_frames=machine.num_frames,
                host_cost=machine.copy_cost,
                kv=machine.kv,
                model=MODEL,
                max_model_len=machine.context,
            )

        return open_one

    config = Config(device="sim", swap_mib=machine.host_mib, swap_idle_seconds=NEVER_SECONDS, **options)
    async with booted(config, "sim", open_link) as (system, _):
        settle_order()
        (core,) = system.cores.values()
        open_chat = partial(open_inside_chat, system, core)
        held = await hold_all(conversations, MODEL.vocab_size, open_chat, most_seconds=most_seconds)
        return SwitchRun.of(held, core.statistics())
