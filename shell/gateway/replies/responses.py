"""`/v1/responses`: the response, its items, and the events of its stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shell.gateway.replies.chat import TokenLogprob
from shell.gateway.replies.common import Count
from syscalls.sampling import MAX_LOGPROBS

ResponseId = Annotated[str, Meta(pattern="^resp_")]
Status = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)]
    logprobs: list[TokenLogprob]  # empty unless they were asked for


class ReasoningText(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="reasoning_text"):
    """The text of a thought."""

    text: str


class MessageItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="message"):
    """What the model says."""

    id: Annotated[str, Meta(pattern="^msg_")]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="reasoning"):
    """What the model thinks."""

    id: Annotated[str, Meta(pattern="^rs_")]
    status: ItemStatus
    summary: Annotated[list[Any], Meta(max_length=0)]
    content: list[ReasoningText]


class FunctionCallItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="function_call"):
    """What the model calls. `arguments` is JSON as text."""

    id: Annotated[str, Meta(pattern="^fc_")]
    status: ItemStatus
    call_id: Annotated[str, Meta(pattern="^call_")]
    name: str
    arguments: str


Item = MessageItem | ReasoningItem | FunctionCallItem


class InputDetails(msgspec.Struct, forbid_unknown_fields=True):
    """Of the input: what was found in memory."""

    cached_tokens: Count


class OutputDetails(msgspec.Struct, forbid_unknown_fields=True):
    """Of the output: what was thought."""

    reasoning_tokens: Count


class ResponseUsage(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens."""

    input_tokens: Count
    input_tokens_details: InputDetails
    output_tokens: Count
    output_tokens_details: OutputDetails
    total_tokens: Count


class ResponseFailure(msgspec.Struct, forbid_unknown_fields=True):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct, forbid_unknown_fields=True):
    """Why a response was cut."""

    reason: Literal["max_output_tokens"]


class ResponseObject(msgspec.Struct, forbid_unknown_fields=True):
    """A response as it stands. Null `usage`: it is not over, or has failed."""

    id: ResponseId
    object: Literal["response"]
    created_at: int
    status: Status
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    parallel_tool_calls: bool
    previous_response_id: ResponseId | None
    reasoning: dict[str, str | None]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
    top_p: float
    truncation: Literal["auto", "disabled"]
    output: list[Item]
    usage: ResponseUsage | None


class ResponseEvent(msgspec.Struct):
    """One event of a stream: numbers rise by one from 0. What else it has depends on its type."""

    type: Annotated[str, Meta(pattern="^response\\.")]
    sequence_number: Count


class InputItems(msgspec.Struct, forbid_unknown_fields=True):
    """What was sent, as it was sent, each item with an id."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedResponse(msgspec.Struct, forbid_unknown_fields=True):
    """A response that is no more."""

    id: ResponseId
    object: Literal["response"]
    deleted: Literal[True]
