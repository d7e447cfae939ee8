"""Chat completions, whole and in chunks."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shell.gateway.replies.common import Metrics, Progress, PromptLogprob, Timings, Usage

Byte = Annotated[int, Meta(ge=0, le=255)]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class TopLogprob(msgspec.Struct, forbid_unknown_fields=True):
    """A token that might have been sampled."""

    token: str
    logprob: float
    bytes: list[Byte]


class TokenLogprob(msgspec.Struct, forbid_unknown_fields=True):
    """A token that was."""

    token: str
    logprob: float
    bytes: list[Byte]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, forbid_unknown_fields=True):
    """The log-probabilities of a choice, token by token."""

    content: list[TokenLogprob]


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """What is called. `arguments` is JSON as text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """One call."""

    id: Annotated[str, Meta(pattern="^call_")]
    type: Literal["function"]
    function: CalledFunction


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """The answer. `content` is null only where there are calls and no text."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: Annotated[list[ToolCall], Meta(min_length=1)] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, forbid_unknown_fields=True):
    """One of the answers."""

    index: Annotated[int, Meta(ge=0)]
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET
    token_times: list[float] | UnsetType = UNSET  # Unix time, seconds


class ChatCompletion(msgspec.Struct, forbid_unknown_fields=True):
    """A whole answer."""

    id: Annotated[str, Meta(pattern="^chatcmpl-")]
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: Annotated[str, Meta(pattern="^fp")]
    choices: Annotated[list[ChatChoice], Meta(min_length=1)]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET
    metrics: Metrics | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


class FunctionDelta(msgspec.Struct, forbid_unknown_fields=True):
    """More of what is called: the name comes once, with the first part."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, forbid_unknown_fields=True):
    """More of a call: the id comes once, with the first part."""

    index: Annotated[int, Meta(ge=0)]
    function: FunctionDelta
    id: Annotated[str, Meta(pattern="^call_")] | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class MessageDelta(msgspec.Struct, forbid_unknown_fields=True):
    """More of an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: Annotated[list[ToolCallDelta], Meta(min_length=1)] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, forbid_unknown_fields=True):
    """More of one of the answers; `finish_reason` is null until it ends."""

    index: Annotated[int, Meta(ge=0)]
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    token_times: list[float] | UnsetType = UNSET  # Unix time, seconds


class ChatChunk(msgspec.Struct, forbid_unknown_fields=True):
    """One event of a stream. The one that carries the usage has no choices."""

    id: Annotated[str, Meta(pattern="^chatcmpl-")]
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: Annotated[str, Meta(pattern="^fp")]
    choices: list[ChatDelta]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    metrics: Metrics | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: Progress | UnsetType = UNSET  # where `return_progress` asks for it
