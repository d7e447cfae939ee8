"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any

import attrs
from msgspec import Meta

from shell.gateway.answer import Json, Shape, answer
from shell.gateway.chat_shape import ChatShape
from shell.gateway.config import GatewayConfig
from shell.gateway.constraints import Constraint, compile_constraint, read_constraint
from shell.gateway.conversation import adapt_messages, takes_documents, takes_tools
from shell.gateway.errors import invalid, invalid_value, unsupported
from shell.gateway.exchange import Asker, Exchange
from shell.gateway.fields import FieldTable, accepted, implemented, refused
from shell.gateway.job import Job, make_job
from shell.gateway.json_body import read_json
from shell.gateway.messages import MessageFields, count_characters, read_messages
from shell.gateway.parsers.choose import AUTO, choose_reasoning_marks, choose_tool_parser
from shell.gateway.parsers.generic import JsonParser
from shell.gateway.prompt_length import check_length
from shell.gateway.reader import Reading
from shell.gateway.replies.chat import ChatChunk, ChatCompletion
from shell.gateway.service import Endpoint, Service
from shell.gateway.shared_fields import (
    SHARED_FIELDS,
    SharedFields,
    choose_id,
    convert_shared_fields,
    take_shared_fields,
)
from shell.gateway.template_process import Rendering, render_apart
from shell.gateway.tool_grammar import SCHEMA_CHARACTERS, CallGrammar, find_loose, wants_grammar
from shell.gateway.tools import ToolUse, read_tool_use
from syscalls.sampling import MAX_LOGPROBS
from syscalls.text.template import TemplateError
from syscalls.text.tokenizer import TextModel

CHAT_FIELDS: FieldTable = {
    **SHARED_FIELDS,
    **implemented(
        "messages", "max_completion_tokens", "top_logprobs", "add_generation_prompt",
        "continue_final_message", "chat_template_kwargs", "reasoning_effort", "tools", "tool_choice",
        "parallel_tool_calls", "include_reasoning", "documents", "chat_template",
    ),
    **accepted("verbosity"),
    **refused(
        functions=([],), function_call=("none", "auto"), audio=(), modalities=(["text"],),
        web_search_options=(), prediction=(), echo=False, best_of=1, suffix=("",),
    ),
}  # fmt: skip

# What the template is given by us, not by `chat_template_kwargs`.
RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "self"}
)


class ChatFields(SharedFields, kw_only=True):
    """The body of a chat completion, beside its messages."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True


class ChatBody(ChatFields, kw_only=True):
    """The whole body of a chat completion, for its description."""

    messages: Annotated[list[MessageFields], Meta(min_length=1)]


class ChatCompletions(Endpoint):
    """Answers chat completion requests."""

    name = "chat.completions"
    body_type = ChatBody
    answer_type = ChatCompletion
    event_type = ChatChunk

    async def answer(self, exchange: Exchange) -> None:
        """Validate, render, encode, generate."""
        self.service.admission.check()
        body = await read_json(self.service, exchange, "messages")
        await answer(self.service, exchange, lambda: prepare_chat(self.service, exchange, body))


def read_chat_fields(body: Json, ignored: list[str]) -> tuple[ChatFields, list[Json]]:
    """Check a body. Returns its fields and its messages as the template takes them. Raises ApiError 400."""
    taken = take_shared_fields(body, CHAT_FIELDS, ignored)
    messages = read_messages(taken.pop("messages", None), ignored)
    fields = convert_shared_fields(taken, ChatFields, ignored)
    if fields.top_logprobs and not fields.logprobs:
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


@attrs.frozen(kw_only=True)
class ChatPrompt:
    """A conversation that is ready to be answered."""

    text: str  # special tokens spelled out
    tokens: tuple[int, ...]
    reading: Reading
    grammar: str | None = None


async def encode_chat(
    service: Service,
    text: TextModel,
    fields: ChatFields,
    messages: list[Json],
    tool_use: ToolUse | None,
    constraint: Constraint | None = None,
) -> ChatPrompt:
    """Render and encode a conversation, and say how its answer is to be read. Raises ApiError 400."""
    config = service.config
    source = _choose_template(config, text, fields, with_tools=tool_use is not None)
    parser = choose_tool_parser(config.tool_parser, source)
    marks = choose_reasoning_marks(config.reasoning_parser, source)
    # A template whose format we cannot tell would teach the model calls that nobody reads: words do better.
    is_native = takes_tools(source) and (config.tool_parser != AUTO or parser is not JsonParser)
    tools = tool_use.describe() if tool_use is not None else []
    variables = dict(fields.chat_template_kwargs or {})
    if fields.reasoning_effort is not None:
        variables["reasoning_effort"] = fields.reasoning_effort
    if fields.documents:
        if not takes_documents(source):
            raise unsupported("documents", ": this model's chat template has no place for them")
        variables["documents"] = fields.documents
    rendering = Rendering(
        template=source,
        special_tokens=dict(text.special_tokens),
        messages=adapt_messages(messages, source, tools, parser.STYLE, is_native=is_native),
        add_generation_prompt=not fields.continue_final_message and fields.add_generation_prompt is not False,
        continue_final_message=fields.continue_final_message,
        tools=(tools or None) if is_native else None,
        variables=variables,
    )

    def render() -> str:
        return text.chat_template.render(
            rendering.messages,
            rendering.add_generation_prompt,
            rendering.continue_final_message,
            rendering.tools,
            **rendering.variables,
        )

    num_characters = count_characters(rendering.messages)
    try:
        if fields.chat_template is not None:
            prompt = await render_apart(rendering)
        else:
            prompt = await service.do_text_work(num_characters, render)
    except TemplateError as error:
        raise invalid("invalid_value", f"The chat template refused: {error}.", "messages") from None
    tokens = await service.do_text_work(
        len(prompt), lambda: tuple(text.encode(prompt, bool(fields.add_special_tokens)))
    )
    is_thinking = marks is not None and _opens_thought(prompt, marks, fields, messages)
    answer = None
    if constraint is not None:
        given = constraint
        answer = await service.do_text_work(given.num_characters, lambda: compile_constraint(given))
    if tool_use is None:
        reading = Reading(reasoning_marks=marks, is_thinking=is_thinking)
        if answer is not None and marks is not None:
            answer = CallGrammar(
                tool_use=None,
                parser=parser,
                mark_ids=text.added_token_ids(marks),
                reasoning_marks=marks,
                is_thinking=is_thinking,
                answer=answer,
            ).write()
        return ChatPrompt(text=prompt, tokens=tokens, reading=reading, grammar=answer)
    grammar = None
    if wants_grammar(tool_use) or answer is not None:
        loose = await service.do_text_work(len(tools) * SCHEMA_CHARACTERS, lambda: find_loose(tool_use))
        grammar = CallGrammar(
            tool_use=tool_use,
            parser=parser,
            mark_ids=text.added_token_ids((*parser.MARKUP, *(marks or ()))),
            reasoning_marks=marks,
            is_thinking=is_thinking,
            loose=loose,
            answer=None if tool_use.is_forced else answer,
        ).write()
    reading = Reading(
        reasoning_marks=marks,
        is_thinking=is_thinking,
        tool_parser=parser,
        function_names=tool_use.names,
        is_certain=grammar is not None,
        is_forced=tool_use.is_forced,
        has_one_call=tool_use.has_one_call,
    )
    return ChatPrompt(text=prompt, tokens=tokens, reading=reading, grammar=grammar)


def _choose_template(config: GatewayConfig, text: TextModel, fields: ChatFields, *, with_tools: bool) -> str:
    """Return the source of the template to use; "" when the model has none, of which rendering complains."""
    if fields.chat_template is not None:
        if not config.allow_chat_template:
            raise unsupported("chat_template", ": the operator allows no templates but the models' own")
        return fields.chat_template
    try:
        return text.chat_template.source(with_tools=with_tools)
    except TemplateError:
        return ""


def _opens_thought(prompt: str, marks: tuple[str, str], fields: ChatFields, messages: list[Json]) -> bool:
    """True when the answer begins inside a thought: the prompt, or the message to continue, has opened it."""
    opens, closes = marks
    if fields.continue_final_message:
        final: str = messages[-1]["content"]
        return final.rfind(opens) > final.rfind(closes)
    return prompt.rstrip().endswith(opens)


async def prepare_chat(service: Service, asker: Asker, body: Json) -> tuple[Job, Shape]:
    """Turn a body into a job. Raises ApiError."""
    fields, messages = read_chat_fields(body, asker.ignored)
    asker.request_id = choose_id(fields, asker.request_id)
    tool_use = read_tool_use(
        fields.tools or [], fields.tool_choice, fields.parallel_tool_calls, asker.ignored
    )
    model = await service.catalog.resolve(fields.model)
    constraint = read_constraint(fields, asker.ignored)
    given = fields.max_completion_tokens
    num_characters = count_characters(messages)
    await service.do_text_work(
        num_characters,
        lambda: check_length(fields, model, num_characters, given or fields.max_tokens, "messages"),
    )
    prompt = await encode_chat(service, model.text, fields, messages, tool_use, constraint)
    if fields.dry_multiplier:  # its breakers are looked for in every token
        await service.do_text_work(model.info.vocab_size, lambda: model.text.piece_search)
    job = make_job(
        fields,
        model,
        service.config,
        (prompt.tokens,),
        max_tokens=fields.max_tokens if given is None else given,
        num_top_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        param="messages",
        label=asker.request_id,
        reading=prompt.reading,
        grammar=prompt.grammar,
    )
    return job, ChatShape(
        job=job,
        is_named=tool_use is not None and tool_use.named is not None,
        reasoning_fields=service.config.reasoning_fields if fields.include_reasoning else (),
    )
