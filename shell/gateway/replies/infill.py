"""What was filled in, in llama.cpp's words."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from shell.gateway.replies.common import Count, Metrics, Progress, Timings, Usage


class Infilled(msgspec.Struct, forbid_unknown_fields=True):
    """The text for the hole, and how it ended: at an end token, a limit or a stop string."""

    index: Count
    content: str
    tokens: list[int]
    id_slot: int
    stop: bool
    model: str
    tokens_predicted: Count
    tokens_evaluated: Count
    tokens_cached: Count
    truncated: bool
    has_new_line: bool
    stop_type: Literal["eos", "limit", "word"]
    stopping_word: str
    timings: Timings
    usage: Usage | UnsetType | None = UNSET
    metrics: Metrics | UnsetType = UNSET


class InfillChunk(msgspec.Struct, forbid_unknown_fields=True):
    """A part of the text; the last one, with `stop`, has what the whole answer has."""

    index: Count
    content: str
    tokens: list[int]
    id_slot: int
    stop: bool
    tokens_predicted: Count | UnsetType = UNSET
    tokens_evaluated: Count | UnsetType = UNSET
    tokens_cached: Count | UnsetType = UNSET
    model: str | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    has_new_line: bool | UnsetType = UNSET
    stop_type: Literal["eos", "limit", "word"] | UnsetType = UNSET
    stopping_word: str | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: Progress | UnsetType = UNSET  # where `return_progress` asks for it
    usage: Usage | UnsetType | None = UNSET
    metrics: Metrics | UnsetType = UNSET
