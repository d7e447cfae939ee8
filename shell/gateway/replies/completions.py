"""Text completions, whole and in chunks."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shell.gateway.replies.common import Metrics, Progress, PromptLogprob, Timings, Usage

FinishReason = Literal["stop", "length"]


class TextLogprobs(msgspec.Struct, forbid_unknown_fields=True):
    """Parallel lists, an entry for each token. The first token of an echoed prompt has nulls."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct, forbid_unknown_fields=True):
    """One of the texts: those of the first prompt come first."""

    index: Annotated[int, Meta(ge=0)]
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    token_times: list[float] | UnsetType = UNSET  # Unix time, seconds
    prompt_token_ids: list[int] | UnsetType = UNSET


class TextCompletion(msgspec.Struct, forbid_unknown_fields=True):
    """A whole answer."""

    id: Annotated[str, Meta(pattern="^cmpl-")]
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: Annotated[str, Meta(pattern="^fp")]
    choices: Annotated[list[TextChoice], Meta(min_length=1)]
    usage: Usage
    metrics: Metrics | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


class TextDelta(msgspec.Struct, forbid_unknown_fields=True):
    """More of one of the texts; `finish_reason` is null until it ends."""

    index: Annotated[int, Meta(ge=0)]
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    token_times: list[float] | UnsetType = UNSET  # Unix time, seconds
    prompt_token_ids: list[int] | UnsetType = UNSET


class TextChunk(msgspec.Struct, forbid_unknown_fields=True):
    """One event of a stream. The one that carries the usage has no choices."""

    id: Annotated[str, Meta(pattern="^cmpl-")]
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: Annotated[str, Meta(pattern="^fp")]
    choices: list[TextDelta]
    usage: Usage | UnsetType | None = UNSET
    metrics: Metrics | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: Progress | UnsetType = UNSET  # where `return_progress` asks for it
