"""The step composer: divides a step's token budget among the processes that run.

Decode, chunked prefill and whatever else computes tokens are one thing with different counts: a process has
tokens that are not computed yet, and gets some of the budget (Sarathi-Serve, Agrawal et al. 2024, for the
chunking; the single counter is the field's "no prefill phase").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import attrs

from llmos.params import STEPS_IN_FLIGHT
from llmos.proc.pcb import Process


@attrs.frozen
class BatchLimits:
    """What one step may hold."""

    max_step_tokens: int
    max_rows: int
    max_chunk_tokens: int  # most tokens of one process in one step


class Share(NamedTuple):  # a tuple: one is made for every row of every step
    """One process's part of a step: its next `num_tokens` positions."""

    process: Process
    num_tokens: int


def compose(running: Iterable[Process], limits: BatchLimits) -> list[Share]:
    """Divide the budget: one token to each process that decodes, then prompt chunks, in the order given.

    Neither mutates nor looks at memory: whether the shares can be mapped is the caller's business.

    Args:
        running: processes in the policy's order.
        limits: the budget.

    Returns:
        Shares with num_tokens >= 1, decodes first, at most one for a process.
    """
    decodes: list[Share] = []
    prompts: list[Process] = []
    budget = limits.max_step_tokens
    for process in running:
        waiting = len(process.tokens) + process.num_pending - process.num_scheduled
        if waiting > 1:
            prompts.append(process)
        elif (
            process.num_pending < STEPS_IN_FLIGHT
            and len(process.tokens) - process.turn_start + process.num_pending < process.max_tokens
            and budget > 0
            and len(decodes) < limits.max_rows
        ):
            decodes.append(Share(process, 1))
            budget -= 1
    for process in prompts:
        if budget <= 0 or len(decodes) >= limits.max_rows:
            break
        count = min(process.num_uncomputed, budget, limits.max_chunk_tokens)
        decodes.append(Share(process, count))
        budget -= count
    return decodes
