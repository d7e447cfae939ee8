"""Parts that several answers have."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

Count = Annotated[int, Meta(ge=0)]


class PromptDetails(msgspec.Struct, forbid_unknown_fields=True):
    """Of the prompt: what was found in memory."""

    cached_tokens: Count


class CompletionDetails(msgspec.Struct, forbid_unknown_fields=True):
    """Of the answer: what was thought."""

    reasoning_tokens: Count


class Usage(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens. Each prompt counts once; every sampled token of every choice counts."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


class PromptLogprob(msgspec.Struct, forbid_unknown_fields=True):
    """How likely a token of the prompt was; `rank` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


class Metrics(msgspec.Struct, forbid_unknown_fields=True):
    """Where the time went, in milliseconds."""

    time_to_first_token_ms: float | None
    generation_time_ms: float
    queue_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    preempted_ms: float
    swap_ms: float
    migrations: Count
    spec_accept_rate: float | None


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """How far the prompts are computed, in tokens: `cache` of the `processed` ones were found in memory."""

    total: Count
    cache: Count
    processed: Count
    time_ms: Count  # since the request came


class Timings(msgspec.Struct, forbid_unknown_fields=True):
    """The same in llama.cpp's words."""

    cache_n: Count
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float | None
    predicted_n: Count
    predicted_ms: float
    predicted_per_second: float | None
