"""From which context on a switch is faster by copying than by computing again: measured, and as predicted.

Two chats take turns on a device whose memory holds one of them. Each turn is one token in and one out, so
that nearly all of it is the switch: the other's memory goes, and its own comes back.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import attrs
import trio

from llmos.bench.chats import TurnTimes
from llmos.bench.client_chat import open_client_chat
from llmos.bench.conversations import Conversation, Turn
from llmos.bench.in_process import booted
from llmos.bench.report import Report
from llmos.bench.switch_real import NEVER_SECONDS, RealMachine
from llmos.config import Config
from llmos.cost import StepWork
from llmos.sched.core import Core
from llmos.sched.preemption import PreemptionCosts
from syscalls.client import Client, open_client

NUM_TURNS = 7  # of each chat


@attrs.frozen
class Switch:
    """Seconds of one switch between contexts of this length."""

    num_tokens: int
    measured: float
    predicted: float | None  # None: the driver has no profile


def measure_crossover(
    machine: RealMachine, report: Report, lengths: Sequence[int], advance: Callable[[], None]
) -> None:
    """Two rows for each length: a switch as measured, and as the kernel's cost model has it.

    `advance` is called after each length.
    """
    ways: dict[str, list[Switch]] = {"swap": [], "recompute": []}
    for length in lengths:
        for preempt in ("swap", "recompute"):
            ways[preempt].append(trio.run(_measure, machine, length, preempt))
        advance()
    for swap, recompute in zip(ways["swap"], ways["recompute"], strict=True):
        case = f"{machine.name}, switch by context: {swap.num_tokens} tokens"
        report.add(
            case, "swap", swap.measured * 1e3, "ms",
            against="recompute", ratio=recompute.measured / swap.measured, runs=NUM_TURNS,
        )  # fmt: skip
        if swap.predicted and recompute.predicted:
            report.add(
                case, "swap, predicted by the cost model", swap.predicted * 1e3, "ms",
                against="recompute, predicted", ratio=recompute.predicted / swap.predicted, runs=1,
            )  # fmt: skip


async def _measure(machine: RealMachine, length: int, preempt: Literal["swap", "recompute"]) -> Switch:
    end = length + 2 * NUM_TURNS + 2
    num_frames = (machine.kv.num_pages(end) + 1) * machine.kv.frames_per_page
    pool_mib = -(-num_frames * machine.kv.frame_bytes >> 20)
    config = Config(
        **machine.options, policy="fcfs", preempt=preempt, swap_reuse=False, prefix_cache=False,
        pool_mib=pool_mib, max_model_len=machine.context, swap_idle_seconds=NEVER_SECONDS,
    )  # fmt: skip
    async with booted(config, config.device) as (system, socket_path), open_client(socket_path) as client:
        (core,) = system.cores.values()
        seconds = await _take_turns(client, machine.vocab_size, length)
        return Switch(length, seconds, _predict(core, machine, length, preempt))


async def _take_turns(client: Client, vocab_size: int, length: int) -> float:
    """Median time of a turn, once both have their context."""
    turns = (Turn(length, 1, 0.0), *(Turn(1, 1, 0.0) for _ in range(NUM_TURNS)))
    first, second = Conversation(0, 0.0, turns), Conversation(1, 0.0, turns)
    taken = []
    async with open_client_chat(client, first) as one, open_client_chat(client, second) as other:
        for number in range(len(turns)):
            for chat, conversation in ((one, first), (other, second)):
                times = TurnTimes(trio.current_time())
                await chat.say(conversation.input_tokens(number, vocab_size), 1, times)
                if number:
                    taken.append(times.arrivals[0] - times.asked_at)
    return statistics.median(taken)


def _predict(core: Core, machine: RealMachine, length: int, preempt: str) -> float | None:
    profile, forecast = core.preemption.profile, core.forecast
    if profile is None or profile.host is None or forecast is None:
        return None
    turn = forecast.step_seconds(StepWork().with_row(length, 1))
    if preempt == "swap":
        num_bytes = machine.kv.num_pages(length) * machine.kv.page_bytes
        return turn + 2 * profile.host.seconds(num_bytes)
    costs = PreemptionCosts(max_step_tokens=core.limits.max_step_tokens, forecast=forecast, profile=profile)
    return turn + costs.recompute_seconds(0, length)
