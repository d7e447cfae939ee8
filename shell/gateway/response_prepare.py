"""From a body to a record and a job: the conversation, its tokens, and what they continue."""

from __future__ import annotations

import time
from secrets import token_hex
from typing import Any

import attrs
import msgspec

from shell.gateway.chat import ChatFields, prepare_chat
from shell.gateway.chat_shape import ChatShape
from shell.gateway.errors import ApiError, invalid
from shell.gateway.exchange import Asker, Exchange
from shell.gateway.job import Job
from shell.gateway.prompt_length import check_context
from shell.gateway.response_input import (
    PASSED_ON,
    Json,
    ResponseFields,
    list_output_messages,
    read_input,
    read_response_fields,
)
from shell.gateway.response_record import Record
from shell.gateway.response_references import resolve_references
from shell.gateway.response_run import Prepared
from shell.gateway.response_truncation import prepare_truncated
from shell.gateway.service import Service

# Paths of a chat completion's fields, under the names that a response has for them.
RENAMED = (
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("tool_choice.allowed_tools", "tool_choice"),
    (".function.", "."),
)

# The whole body of a response, for its description: what is passed on has the type that it has there.
ResponseBody = msgspec.defstruct(
    "ResponseBody",
    [
        (field.name, field.type, field.default)
        for field in msgspec.structs.fields(ChatFields)
        if field.name in PASSED_ON
    ],
    bases=(ResponseFields,),
    kw_only=True,
)
ResponseBody.__doc__ = "The body of a response."


async def prepare_job(service: Service, asker: Asker, chat: Json, messages: list[Json]) -> Job:
    """Prepare the chat completion that answers. Raises ApiError whose `param` is the response's field."""
    try:
        job, shape = await prepare_chat(service, asker, {**chat, "messages": messages})
    except ApiError as error:
        if error.param is not None:
            for of_chat, ours in RENAMED:
                error.param = error.param.replace(of_chat, ours, 1)
        raise
    assert isinstance(shape, ChatShape)
    return job


async def prepare_conversation(
    service: Service, asker: Asker, fields: ResponseFields, chat: Json, messages: list[Json]
) -> Job:
    """Prepare the answer to a conversation, or with `truncation` "auto" to as much of its end as fits.

    The instructions come first; those of earlier responses are not carried over. Raises ApiError.
    """
    ignored = list(asker.ignored)
    first = [] if fields.instructions is None else [{"role": "system", "content": fields.instructions}]

    async def prepare(kept: list[Json]) -> Job:
        asker.ignored[:] = ignored  # each try finds the same
        return await prepare_job(service, asker, chat, [*first, *kept])

    if fields.truncation == "auto":
        return await prepare_truncated(prepare, messages)
    return await prepare(messages)


@attrs.define(eq=False)
class Bygone:
    """Stands for the request that began a response, when it is long over."""

    request_id: str
    ignored: list[str] = attrs.field(factory=list)


async def prepare_again(service: Service, record: Record) -> Job:
    """Prepare the job of a record once more, to read its tokens. Raises ApiError."""
    asker = Bygone(record.id)
    fields, chat = read_response_fields({**record.body, "input": "x"}, asker.ignored)
    return await prepare_conversation(service, asker, fields, chat, record.messages)


async def prepare_response(
    service: Service, exchange: Exchange, body: Json, tenant: str, previous: Record | None
) -> Prepared:
    """Check a body and encode its conversation. Raises ApiError."""
    fields, chat = read_response_fields(body, exchange.ignored)
    if isinstance(fields.input, list):
        fields.input = resolve_references(fields.input, service.responses.store, tenant)
    items = read_input(fields.input)
    messages = [*previous.messages, *list_output_messages(previous.output), *items] if previous else items
    job = await prepare_conversation(service, exchange, fields, chat, messages)
    (prompt,) = job.prompts
    sampling = job.spawn["sampling"]
    text = job.model.text.decode(prompt, skip_special_tokens=False)
    spawn = {k: v for k, v in job.spawn.items() if k not in ("label", "max_tokens", "nice")}
    record = Record(
        id=f"resp_{token_hex(16)}",
        tenant=tenant,
        created_at=int(time.time()),
        body={name: value for name, value in body.items() if name != "input"},
        messages=messages,
        echo={
            "background": fields.background,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "metadata": fields.metadata,
            "model": job.model.name,
            "parallel_tool_calls": chat.get("parallel_tool_calls", True),
            "previous_response_id": fields.previous_response_id,
            "reasoning": {"effort": chat.get("reasoning_effort"), "summary": None},
            "store": fields.store,
            "temperature": sampling.temperature,
            "text": {"format": fields.text.get("format", {"type": "text"})},
            "tool_choice": fields.tool_choice or "auto",
            "tools": [{"parameters": None, "strict": None, **tool} for tool in fields.tools],
            "top_logprobs": fields.top_logprobs,
            "top_p": sampling.top_p,
            "truncation": fields.truncation,
        },
        model=job.model.name,
        input_items=_describe_items(fields.input),
        prompt_text=text,
        prompt=list(prompt),
        is_stored=fields.store,
        is_background=fields.background,
        spawn_key=msgspec.json.encode([spawn, job.model.info.hash]).decode(),
    )
    suffix = _continue(job, record, previous) if previous is not None else ()
    if previous is None or not suffix:
        return Prepared(record=record, job=job)
    prompt = (*previous.prompt, *previous.tokens, *suffix)
    if (
        fields.truncation == "auto"
        and len(prompt) + (fields.max_output_tokens or 1) > job.model.info.max_model_len
    ):
        return Prepared(record=record, job=job)  # the same text in fewer tokens fits
    check_context(job.model, len(prompt), fields.max_output_tokens, "input")
    record.prompt = list(prompt)
    record.prompt_text = job.model.text.decode(prompt, skip_special_tokens=False)
    parent = previous if _can_fork(previous, record) and sampling.grammar is None else None
    return Prepared(record=record, job=attrs.evolve(job, prompts=(prompt,)), parent=parent, suffix=suffix)


def _can_fork(previous: Record, record: Record) -> bool:
    """True when the previous response's process samples as this one wants to."""
    return previous.pid is not None and previous.spawn_key == record.spawn_key


def _continue(job: Job, record: Record, previous: Record) -> tuple[int, ...]:
    """Return what follows the previous response's tokens; (): the conversation does not continue its text.

    A text does not always encode to the tokens that were sampled, so the new part is encoded by itself, and
    the history stays what the process has in its memory.
    """
    text = job.model.text
    before = text.decode([*previous.prompt, *previous.tokens], skip_special_tokens=False)
    if previous.model != record.model or not record.prompt_text.startswith(before):
        return ()
    return tuple(text.encode(record.prompt_text[len(before) :], add_special_tokens=False))


def _describe_items(given: str | list[Any]) -> list[Json]:
    """Return input items as `GET …/input_items` lists them, each with an id."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    described = []
    for item in items:
        kind = item.get("type", "message")
        shown = {"id": f"{kind[:3]}_{token_hex(12)}", **item, "type": kind}
        if kind == "message":
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            if isinstance(item.get("content"), str):
                shown["content"] = [{"type": part, "text": item["content"]}]
            shown.setdefault("status", "completed")
        described.append(shown)
    return described


def require_over(record: Record) -> None:
    """Raise ApiError 400 unless a response can be continued."""
    if record.status not in ("completed", "incomplete"):
        message = f"Response '{record.id}' is {record.status}; it can be continued once it is completed."
        raise invalid("invalid_value", message, "previous_response_id")
