"""From which context on a switch is faster by copying than by computing again: measured, and as predicted.

Chats fill a device's memory but for one. The two that came last take turns, so that nearly every turn begins
with a switch: the other's memory goes, and its own comes back. Each then has a second turn at once, one token
in and one out like the first, without a switch; what the first takes longer is the switch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal

import trio

from llmos.bench.chats import Chat, TurnTimes
from llmos.bench.client_chat import open_client_chat
from llmos.bench.conversations import Conversation, Turn
from llmos.bench.in_process import booted
from llmos.bench.kept_runs import KeptRuns
from llmos.bench.report import Report
from llmos.bench.switch_real import NEVER_SECONDS, RealMachine
from llmos.bench.switch_report import NothingMeasured
from llmos.bench.switch_variants import BLOCK_TOKENS, BLOCKS
from llmos.config import Config
from llmos.cost import StepWork
from llmos.sched.core import Core
from llmos.sched.preemption import Preempt, PreemptionCosts
from syscalls.client import open_client

NUM_TURNS = 7  # of each chat that begin with a switch

Way = Literal["swap", "block swap", "recompute"]


def measure_crossover(
    machine: RealMachine,
    report: Report,
    lengths: Sequence[int],
    kept: KeptRuns,
    advance: Callable[[], None],
) -> None:
    """Three rows for each length: a switch as measured, by blocks in turn with the steps, and as predicted.

    `advance` is called after each length.

    Raises:
        NothingMeasured: a turn began without a switch.
    """
    for length in lengths:
        ways: tuple[Way, ...] = ("swap", "block swap", "recompute")
        swap, blocks, recompute = (_measure_once(machine, length, way, kept) for way in ways)
        case = f"{machine.name}, switch by context: {length} tokens"
        report.add(
            case, "swap", swap[0] * 1e3, "ms",
            against="recompute", ratio=recompute[0] / swap[0], runs=2 * NUM_TURNS,
        )  # fmt: skip
        report.add(
            case, "swap", swap[0] * 1e3, "ms",
            against=BLOCKS, ratio=blocks[0] / swap[0], runs=2 * NUM_TURNS,
        )  # fmt: skip
        if swap[1] and recompute[1]:
            report.add(
                case, "swap, predicted by the cost model", swap[1] * 1e3, "ms",
                against="recompute, predicted", ratio=recompute[1] / swap[1], runs=1,
            )  # fmt: skip
        advance()


def _measure_once(machine: RealMachine, length: int, way: Way, kept: KeptRuns) -> tuple[float, ...]:
    """Seconds of one switch at this length: measured, and predicted (0: the driver has no profile)."""
    case, what = f"{machine.name}, switch by context", f"{way}, {length} tokens"
    found = kept.numbers(case, what)
    if found is None:
        found = trio.run(_measure, machine, length, way)
        kept.keep_numbers(case, what, 0, found)
    return found


async def _measure(machine: RealMachine, length: int, way: Way) -> tuple[float, ...]:
    pages_of_each = machine.kv.num_pages(length + 4 * NUM_TURNS + 6)
    pool_mib = -(-(pages_of_each + 1) * machine.kv.page_bytes >> 20)
    preempt: Preempt = "recompute" if way == "recompute" else "swap"
    in_blocks: dict[str, Any] = {}
    if way == "block swap":
        in_blocks = {"switching": "sync", "swap_piece_kib": max(1, machine.block_bytes(BLOCK_TOKENS) >> 10)}
    config = Config(
        **machine.options, **in_blocks, policy="fcfs", preempt=preempt, swap_reuse=False, prefix_cache=False,
        pool_mib=pool_mib, max_model_len=machine.context, swap_idle_seconds=NEVER_SECONDS,
        **machine.below(2 * pool_mib),
    )  # fmt: skip
    turns = (Turn(length, 1, 0.0), *(Turn(1, 1, 0.0) for _ in range(2 * NUM_TURNS + 2)))
    async with booted(config, config.device) as (system, socket_path), AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(socket_path))
        (core,) = system.cores.values()
        assert core.loaded is not None
        # First come, first served takes the memory of whoever came last: those before the two keep theirs.
        num_chats = core.loaded.num_frames // machine.kv.frames_per_page // pages_of_each + 1
        chats = []
        for number in range(num_chats):
            conversation = Conversation(number, 0.0, turns)
            chat = await stack.enter_async_context(open_client_chat(client, conversation))
            await _say(chat, conversation, 0, machine.vocab_size)
            chats.append((chat, conversation))
        switched, plain = [], []
        for number in range(1, 2 * NUM_TURNS + 3, 2):
            for chat, conversation in chats[-2:]:
                num_before = core.residents.num_preemptions
                seconds = await _say(chat, conversation, number, machine.vocab_size)
                if core.residents.num_preemptions > num_before:
                    switched.append(seconds)
                plain.append(await _say(chat, conversation, number + 1, machine.vocab_size))
        predicted = _predict(core, machine, length, way)
    if len(switched) < 2 * NUM_TURNS:  # the first two turns may find room
        raise NothingMeasured(f"{length} tokens, {way}: turns began without a switch")
    return statistics.median(switched) - statistics.median(plain), predicted


async def _say(chat: Chat, conversation: Conversation, number: int, vocab_size: int) -> float:
    """Seconds from a turn to its answer."""
    times = TurnTimes(trio.current_time())
    await chat.say(conversation.input_tokens(number, vocab_size), 1, times)
    return times.arrivals[0] - times.asked_at


def _predict(core: Core, machine: RealMachine, length: int, way: Way) -> float:
    profile, forecast = core.preemption.profile, core.preemption.forecast
    copy = None if profile is None else profile.host if machine.tier == "host" else profile.disk
    if copy is None or forecast is None:
        return 0.0
    if way != "recompute":
        return 2 * copy.seconds(machine.kv.num_pages(length) * machine.kv.page_bytes)
    costs = PreemptionCosts(max_step_tokens=core.limits.max_step_tokens, forecast=forecast, profile=profile)
    plain = forecast.step_seconds(StepWork().with_row(length, 1))
    return costs.recompute_seconds(0, length + 1) - plain
