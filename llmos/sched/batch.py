"""The step composer: divides a step's token budget among the processes that run.

Decode, chunked prefill and whatever else computes tokens are one thing with different counts: a process has
tokens that are not computed yet, and gets some of the budget (Sarathi-Serve, Agrawal et al. 2024, for the
chunking; the single counter is the field's "no prefill phase").

Whoever decodes waits for the whole step, so prompt tokens beside decodes are limited by the time that the
step will take. In a step where nobody decodes they are not: a prompt waits only for itself and for those who
came before it, and a long step is the efficient one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import attrs

from llmos.cost import StepWork
from llmos.params import (
    MAX_SCORED_TOKENS,
    MAX_STRETCH,
    MIN_PROMPT_TOKENS,
    SMALL_REST,
    STEPS_IN_FLIGHT,
)
from llmos.proc.pcb import Process
from llmos.sched.courtesy import Courtesy, Predict, most_tokens

Standing = Callable[[str], float]  # of a tenant: less goes first


@attrs.frozen
class BatchLimits:
    """What one step may hold."""

    max_step_tokens: int
    max_rows: int
    max_chunk_tokens: int  # most tokens of one process in one step
    target_seconds: float = math.inf  # that a step with decodes may take, when its length can be predicted
    steps_in_flight: int = STEPS_IN_FLIGHT  # planned ahead of the device's answers


Share = tuple[Process, int]  # one process's part of a step: how many of its next positions


def compose(
    running: Iterable[Process],
    limits: BatchLimits,
    predict: Predict | None = None,
    standing: Standing = lambda tenant: 0.0,
    courtesy: Courtesy | None = None,
) -> list[Share]:
    """Divide the budget: one token to each process that decodes, in the order given, then prompt chunks.

    Prompts go by their tenants' standing, the least first, so that a tenant with many prompts does not hold
    up another one's only prompt. Prompts of one tenant keep the order given.

    Beside decodes, prompts get what fits into the target length of a step:
    - Where decodes alone take more than half of the target, the step may take MAX_STRETCH times as long as
      they do. With less time for prompts everybody would lose in the end: who waits for its prompt does not
      decode.
    - Together they get MIN_PROMPT_TOKENS in any case.
    - A prompt that could end with SMALL_REST more of the time for prompts does end.
    - The first prompt that is cut short is the step's last one. Those behind it wait for it, even where one
      of their tokens would be cheaper.
    - While a tenant is over its share, its prompts, and others', mind those who decode: see Courtesy.

    An input that must be computed whole (an encoder's) is not cut: it waits until it fits, or has a step of
    its own. Prompts whose tokens are to be scored get MAX_SCORED_TOKENS together.

    Memory is not looked at: whether the shares can be mapped is the caller's business. Mutates `courtesy`.

    Args:
        running: processes in the policy's order.
        limits: the budget.
        predict: how long steps take; None: not known, and the target is not minded.
        standing: of a tenant; when all are equal, prompts too go in the order given.
        courtesy: towards those who decode; None: everybody is within their share.

    Returns:
        Shares of at least one position, decodes first, at most one for a process.
    """
    shares: list[Share] = []
    prompts: list[Process] = []
    most = min(limits.max_step_tokens, limits.max_rows)
    for process in running:
        num_expected = len(process.tokens) + process.num_pending
        if num_expected - process.num_scheduled > 1:
            prompts.append(process)
        elif (
            process.num_pending < limits.steps_in_flight
            and len(shares) < most
            and _wants_next(process, num_expected)
        ):
            shares.append((process, 1))
    courtesy = courtesy or Courtesy()
    courtesy.begin([process for process, _ in shares], prompts)
    if len(prompts) > 1:
        prompts.sort(key=lambda process: standing(process.tenant))  # stable
    if prompts and shares and predict is not None:
        _add_prompts_in_time(shares, prompts, limits, predict, courtesy)
    else:
        _add_prompts(shares, prompts, limits)
    return shares


def _wants_next(process: Process, num_expected: int) -> bool:
    """Is the next position of a process wanted? The last one of an input that becomes a vector is."""
    if process.pooling is not None:
        return process.num_scheduled < num_expected
    return num_expected - process.turn_start < process.max_tokens


def _add_prompts(shares: list[Share], prompts: list[Process], limits: BatchLimits) -> None:
    budget = limits.max_step_tokens - len(shares)
    for process, wanted in _list_chunks(prompts, limits):
        if budget <= 0 or len(shares) >= limits.max_rows:
            break
        if process.is_whole and wanted > budget and shares:
            break  # one that is longer than a step has a step of its own
        count = wanted if process.is_whole else min(wanted, budget)
        shares.append((process, count))
        budget -= count


def _list_chunks(prompts: list[Process], limits: BatchLimits) -> Iterator[Share]:
    """Each prompt and the most of its tokens that a step takes, whatever else it holds; at least one."""
    scorable = MAX_SCORED_TOKENS
    for process in prompts:
        wanted = process.num_uncomputed
        if not process.is_whole:
            wanted = min(wanted, limits.max_chunk_tokens)
        if process.num_scheduled < process.num_to_score:
            wanted = min(wanted, scorable)
            scorable -= wanted
        if wanted:
            yield process, wanted


def _add_prompts_in_time(
    shares: list[Share], prompts: list[Process], limits: BatchLimits, predict: Predict, courtesy: Courtesy
) -> None:
    decode_seconds = predict(_work_of(shares))
    most_seconds = max(limits.target_seconds, MAX_STRETCH * decode_seconds)
    polite_seconds = courtesy.polite_seconds(decode_seconds)
    if courtesy.num_modest and not courtesy.may_be_long and polite_seconds < most_seconds:
        most_seconds = polite_seconds
        held = courtesy.hold_back([process for process, _ in shares], prompts[0], predict, most_seconds)
        if held:
            shares[:] = [share for share in shares if share[0].pid not in held]
    work = _work_of(shares)
    budget = limits.max_step_tokens - len(shares)
    guaranteed = MIN_PROMPT_TOKENS
    for process, chunk in _list_chunks(prompts, limits):
        if budget <= 0 or len(shares) >= limits.max_rows:
            break
        start, wanted = process.num_scheduled, min(chunk, budget)
        if courtesy.num_modest and courtesy.is_over(process):
            most_seconds = min(most_seconds, polite_seconds)
        slack = SMALL_REST * (most_seconds - decode_seconds)
        if predict(work.with_row(start, wanted)) <= most_seconds + slack:
            count = wanted
        else:
            count = most_tokens(work, start, wanted, predict, most_seconds)
            count = min(wanted, max(count, guaranteed))
        if process.is_whole and count < process.num_uncomputed:
            break
        if count:
            shares.append((process, count))
            work = work.with_row(start, count)
        if count < wanted:
            break
        budget -= count
        guaranteed = max(0, guaranteed - count)
    if courtesy.num_modest:
        slack = SMALL_REST * (polite_seconds - decode_seconds)
        if predict(work) > polite_seconds + slack:
            courtesy.note_long()


def _work_of(decodes: list[Share]) -> StepWork:
    num_keys = len(decodes) + sum(process.num_scheduled for process, _ in decodes)
    return StepWork(len(decodes), len(decodes), num_keys, num_keys)
