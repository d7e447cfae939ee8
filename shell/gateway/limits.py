"""A tenant's limits, as clients of the OpenAI API are told of them."""

from __future__ import annotations

import math

from syscalls.tenant import Exceeded, Rates


def rate_headers(rates: Rates | None) -> dict[str, str]:
    """Return `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, for the limits that are set."""
    headers: dict[str, str] = {}
    if rates is None:
        return headers
    for what, rate in (("requests", rates.requests), ("tokens", rates.tokens)):
        if rate is not None:
            headers[f"x-ratelimit-limit-{what}"] = str(math.floor(rate.limit))
            headers[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(rate.remaining)))
            headers[f"x-ratelimit-reset-{what}"] = f"{rate.reset_seconds:.3f}s"
    return headers


def refusal_headers(exceeded: Exceeded) -> dict[str, str]:
    """Return what tells a client's library when to try again, or that it need not."""
    headers = rate_headers(exceeded.rates)
    if exceeded.retry_seconds is None:
        headers["x-should-retry"] = "false"
    else:
        headers["retry-after"] = str(max(1, math.ceil(exceeded.retry_seconds)))
        headers["retry-after-ms"] = str(math.ceil(exceeded.retry_seconds * 1000))
    return headers


def limited_kind(exceeded: Exceeded) -> str:
    """Return the error's `type`: which of the two things is limited."""
    return "tokens" if exceeded.limit == "tokens_per_minute" else "requests"
