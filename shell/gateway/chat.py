"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any

import attrs
from msgspec import Meta

from shell.gateway.answer import Collected, Json, Shape, answer
from shell.gateway.body import parse_body
from shell.gateway.choice import Choice, Delta, TokenEntry
from shell.gateway.errors import invalid, invalid_value
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, accepted, convert, implemented, refused, take_fields
from shell.gateway.logprobs import chat_logprobs
from shell.gateway.messages import count_characters, read_messages
from shell.gateway.parameters import (
    SHARED_FIELDS,
    STREAM_OPTIONS_FIELDS,
    Job,
    SharedFields,
    make_job,
    read_stream_options,
)
from shell.gateway.service import Endpoint, Service
from syscalls.sampling import MAX_LOGPROBS
from syscalls.text.template import TemplateError

CHAT_FIELDS: FieldTable = {
    **SHARED_FIELDS,
    **implemented(
        "messages", "max_completion_tokens", "top_logprobs", "add_generation_prompt",
        "continue_final_message", "chat_template_kwargs", "reasoning_effort",
    ),
    **accepted("verbosity", "parallel_tool_calls"),  # the latter without effect while tools are refused
    **refused(
        tools=([],), tool_choice=("none", "auto"), functions=([],), function_call=("none", "auto"), audio=(),
        modalities=(["text"],), web_search_options=(), prediction=(), include_reasoning=True, echo=False,
        best_of=1, suffix=("",),
    ),
}  # fmt: skip

# What the template is given by us, not by `chat_template_kwargs`.
RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "self"}
)


class ChatFields(SharedFields, kw_only=True):
    """The body of a chat completion, beside its messages."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None


@attrs.define(eq=False)
class ChatShape:
    """Writes `chat.completion` and `chat.completion.chunk` objects."""

    job: Job
    id: str = attrs.field(factory=lambda: f"chatcmpl-{secrets.token_hex(14)}")
    created: int = attrs.field(factory=lambda: int(time.time()))
    _begun: set[int] = attrs.field(factory=set)  # choices whose role was told
    _untold: defaultdict[int, list[int]] = attrs.field(factory=lambda: defaultdict(list))  # token ids

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        envelope = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.job.model.name,
            "system_fingerprint": self.job.model.fingerprint,
            "choices": choices,
        }
        if self.job.return_token_ids and not self._begun:
            envelope["prompt_token_ids"] = list(self.job.prompts[0])
        return envelope

    def _chunk(self, choice: Choice, delta: Json, **more: Any) -> Json:
        row = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return self._envelope("chat.completion.chunk", [row])

    def chunks(self, choice: Choice, delta: Delta) -> list[Json]:
        """Role with the first token, then text, then the finish."""
        found = []
        if choice.index not in self._begun:
            found.append(self._chunk(choice, {"role": "assistant", "content": ""}))
            self._begun.add(choice.index)
        more: Json = {}
        if delta.entries:
            more["logprobs"] = self._logprobs(delta.entries)
        if self.job.return_token_ids:
            self._untold[choice.index] += delta.tokens
            if delta.text or delta.finish_reason is not None:  # no chunk only for tokens without text
                more["token_ids"] = self._untold.pop(choice.index)
        if delta.text:
            found.append(self._chunk(choice, {"content": delta.text}, **more))
            more = {}
        if delta.finish_reason is not None:
            reasons = {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}
            found.append(self._chunk(choice, {}, **more, **reasons))
        return found

    def usage_chunk(self) -> Json:
        """A chunk without choices."""
        return self._envelope("chat.completion.chunk", [])

    def complete(self, collected: list[Collected]) -> Json:
        """The whole response."""
        choices = []
        for each in collected:
            row = {
                "index": each.choice.index,
                "message": {"role": "assistant", "content": each.text},
                "logprobs": self._logprobs(each.entries),
                "finish_reason": each.choice.finish_reason,
                "stop_reason": each.choice.stop_reason,
            }
            if self.job.return_token_ids:
                row["token_ids"] = each.tokens
            choices.append(row)
        return self._envelope("chat.completion", choices)

    def _logprobs(self, entries: Sequence[TokenEntry]) -> Json | None:
        if self.job.num_top_logprobs is None:
            return None
        return chat_logprobs(self.job.model.text, entries, self.job.num_top_logprobs)


class ChatCompletions(Endpoint):
    """Answers chat completion requests."""

    name = "chat.completions"

    async def answer(self, exchange: Exchange) -> None:
        """Validate, render, encode, generate."""
        body = parse_body(await exchange.read_body(self.service.config.max_body_bytes))
        await answer(self.service, exchange, lambda: prepare_chat(self.service, exchange, body))


def read_chat_fields(body: Json, ignored: list[str]) -> tuple[ChatFields, list[Json]]:
    """Check a body. Returns its fields and its messages as the template takes them. Raises ApiError 400."""
    taken = take_fields(body, CHAT_FIELDS, ignored)
    if isinstance(options := taken.get("stream_options"), dict):
        taken["stream_options"] = take_fields(options, STREAM_OPTIONS_FIELDS, ignored, "stream_options")
    messages = read_messages(taken.pop("messages", None), ignored)
    fields = convert(taken, ChatFields)
    read_stream_options(fields.stream_options, fields.stream)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise invalid_value("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is true.")
    if fields.continue_final_message:
        if fields.add_generation_prompt:
            message = "'continue_final_message' and 'add_generation_prompt' exclude each other."
            raise invalid_value("continue_final_message", message)
        if messages[-1]["role"] != "assistant":
            message = "'continue_final_message' needs a last message of role 'assistant'."
            raise invalid_value("continue_final_message", message)
    if reserved := RESERVED_VARIABLES & (fields.chat_template_kwargs or {}).keys():
        name = f"chat_template_kwargs.{min(reserved)}"
        raise invalid_value(name, f"'{name}' cannot be set here: it is the gateway's own.")
    return fields, messages


async def prepare_chat(service: Service, exchange: Exchange, body: Json) -> tuple[Job, Shape]:
    """Turn a body into a job. Raises ApiError."""
    fields, messages = read_chat_fields(body, exchange.ignored)
    model = await service.catalog.resolve(fields.model)
    variables = dict(fields.chat_template_kwargs or {})
    if fields.reasoning_effort is not None:
        variables["reasoning_effort"] = fields.reasoning_effort
    add_prompt = not fields.continue_final_message and fields.add_generation_prompt is not False

    def encode() -> tuple[int, ...]:
        try:
            prompt = model.text.chat_template.render(
                messages, add_prompt, fields.continue_final_message, **variables
            )
        except TemplateError as error:
            raise invalid("invalid_value", f"The chat template refused: {error}.", "messages") from None
        return tuple(model.text.encode(prompt, bool(fields.add_special_tokens)))

    prompt = await service.do_text_work(count_characters(messages), encode)
    given = fields.max_completion_tokens
    job = make_job(
        fields,
        model,
        service.config.sampling_defaults,
        (prompt,),
        max_tokens=fields.max_tokens if given is None else given,
        num_top_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        param="messages",
        label=exchange.request_id,
    )
    return job, ChatShape(job)
