"""Where a request's time went, in our form and in llama.cpp's: extras of a response, on demand."""

from __future__ import annotations

from typing import Any

import trio

from shell.gateway.generation import Generation


def _per_second(count: int, milliseconds: float) -> float | None:
    return round(1000 * count / milliseconds, 3) if milliseconds > 0 else None


def make_timings(generation: Generation) -> dict[str, Any]:
    """Return `metrics` and `timings` as of now; null where there is nothing to tell yet.

    Times to the first token are the first choice's to have one, from when the request arrived. Waits are the
    longest of any choice, as the kernel tells of those that have ended.
    """
    elapsed = 1000 * (trio.current_time() - generation.started)
    has_begun = generation.first_token is not None
    first = 1000 * (generation.first_token or 0.0) if has_begun else elapsed
    predicted = elapsed - first
    num_cached, num_output = generation.num_cached_tokens, generation.num_completion_tokens
    usages = [choice.usage for choice in generation.choices]
    queued = 1000 * max(usage.queued_seconds for usage in usages)
    num_gaps = max(choice.num_tokens for choice in generation.choices) - 1
    num_computed, prompt_ms = generation.num_prompt_tokens - num_cached, max(0.0, first - queued)
    return {
        "metrics": {
            "time_to_first_token_ms": round(first, 3) if has_begun else None,
            "generation_time_ms": round(predicted, 3),
            "queue_time_ms": round(queued, 3),
            "mean_itl_ms": round(predicted / num_gaps, 3) if num_gaps > 0 else None,
            "tokens_per_second": _per_second(num_output, predicted),
            "preempted_ms": round(1000 * max(usage.memory_seconds for usage in usages), 3),
            "swap_ms": round(1000 * max(usage.swapped_seconds for usage in usages), 3),
            "migrations": 0,  # processes stay on the device that they began on
            "spec_accept_rate": None,  # nothing is speculated
        },
        "timings": {
            "cache_n": num_cached,
            "prompt_n": num_computed,
            "prompt_ms": round(prompt_ms, 3),
            "prompt_per_second": _per_second(num_computed, prompt_ms),
            "predicted_n": num_output,
            "predicted_ms": round(predicted, 3),
            "predicted_per_second": _per_second(num_output, predicted),
        },
    }
