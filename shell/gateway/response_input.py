"""The body of `/v1/responses`, put into the words of a chat completion, which does the rest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shell.gateway.errors import invalid, invalid_value, unsupported
from shell.gateway.fields import FieldTable, accepted, convert, implemented, refused, take_fields
from shell.gateway.messages import read_message
from syscalls.sampling import MAX_LOGPROBS

Json = dict[str, Any]

# Fields that mean the same in a chat completion and go there as they are.
PASSED_ON = (
    "model", "temperature", "top_p", "top_k", "min_p", "seed", "min_tokens", "ignore_eos", "stop_token_ids",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "priority", "deadline_ms",
    "chat_template_kwargs", "parallel_tool_calls", "cache_salt", "pin_ttl_s", "user",
)  # fmt: skip
RESPONSE_FIELDS: FieldTable = {
    **implemented(
        "input", "instructions", "max_output_tokens", "stream", "store", "background", "previous_response_id",
        "tools", "tool_choice", "reasoning", "text", "metadata", "include", "truncation",
        "top_logprobs", *PASSED_ON,
    ),
    **accepted(
        "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "stream_options",
    ),
    **refused(
        conversation=(), prompt=(), max_tool_calls=(), context_management=([],), moderation=(),
        stop=([], ""), n=1,
    ),
}  # fmt: skip
TEXT_FIELDS: FieldTable = {**implemented("format"), **accepted("verbosity")}
FORMAT_NAMES = ("name", "schema", "strict", "description")
REASONING_FIELDS: FieldTable = {**implemented("effort"), **accepted("summary", "generate_summary")}
OF_HOSTED_TOOLS = (  # whose items never occur, so that there is nothing to include
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
)  # fmt: skip
ENCRYPTED_THOUGHTS = (
    "reasoning.encrypted_content"  # not needed: a thought is sent in the clear, and taken back
)
LOGPROBS = "message.output_text.logprobs"
PART_KINDS = ("input_text", "output_text", "text", "refusal")


class ResponseFields(msgspec.Struct, kw_only=True):
    """What a response means beyond a chat completion."""

    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    stream: bool = False
    store: bool = True
    background: bool = False
    previous_response_id: str | None = None
    tools: list[Json] = []
    tool_choice: str | Json | None = None
    reasoning: Json = {}
    text: Json = {}
    metadata: dict[str, Any] = {}
    include: list[str] = []
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] = 0
    truncation: Literal["auto", "disabled"] = "disabled"


def read_response_fields(body: Json, ignored: list[str]) -> tuple[ResponseFields, Json]:
    """Check a body. Returns its own fields, and those for the chat completion. Raises ApiError 400."""
    taken = take_fields(body, RESPONSE_FIELDS, ignored)
    chat = {name: taken.pop(name) for name in PASSED_ON if name in taken}
    fields = convert(taken, ResponseFields)
    if fields.background and not fields.store:
        raise invalid_value("background", "'background' needs 'store': nobody could read the response.")
    _check_include(fields.include, ignored)
    if LOGPROBS in fields.include:
        chat["logprobs"], chat["top_logprobs"] = True, fields.top_logprobs
    elif fields.top_logprobs:
        message = f"'top_logprobs' is only allowed when 'include' has '{LOGPROBS}'."
        raise invalid_value("top_logprobs", message)
    text = take_fields(fields.text, TEXT_FIELDS, ignored, "text")
    if "format" in text:
        chat["response_format"] = _read_format(text["format"])
    reasoning = take_fields(fields.reasoning, REASONING_FIELDS, ignored, "reasoning")
    if "effort" in reasoning:
        chat["reasoning_effort"] = reasoning["effort"]
    if fields.max_output_tokens is not None:
        chat["max_completion_tokens"] = fields.max_output_tokens
    if fields.tools:
        chat["tools"] = [_read_tool(tool, index) for index, tool in enumerate(fields.tools)]
    if fields.tool_choice is not None:
        chat["tool_choice"] = _read_choice(fields.tool_choice)
    return fields, chat


def _read_choice(choice: str | Json) -> Any:
    """Return a choice of tools as a chat completion has it: there names lie one level deeper."""
    if not isinstance(choice, dict):
        return choice
    match choice.get("type"):
        case "function" if "name" in choice:
            return {"type": "function", "function": {"name": choice["name"]}}
        case "allowed_tools":
            allowed = {name: choice[name] for name in ("mode", "tools") if name in choice}
            if isinstance(tools := allowed.get("tools"), list):
                allowed["tools"] = [_read_choice(tool) for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": allowed}
        case _:
            return choice


def _check_include(include: list[str], ignored: list[str]) -> None:
    for index, value in enumerate(include):
        where = f"include[{index}]"
        if value == ENCRYPTED_THOUGHTS:
            ignored.append(where)
        elif value != LOGPROBS and value not in OF_HOSTED_TOOLS:
            raise invalid_value(where, f"Invalid value for '{where}': '{value[:60]}' is nothing to include.")


def _read_format(given: Any) -> Any:
    """Return a format as a chat completion has it: there a schema lies one level deeper."""
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        return given
    return {
        "type": "json_schema",
        "json_schema": {name: given[name] for name in FORMAT_NAMES if given.get(name) is not None},
    }


def _read_tool(tool: Json, index: int) -> Json:
    if tool.get("type") != "function":
        raise unsupported(f"tools[{index}].type", f": '{str(tool.get('type'))[:40]}' tools run elsewhere")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {k: tool[k] for k in names if tool.get(k) is not None}}


def read_input(given: str | list[Any]) -> list[Json]:
    """Return input items as the messages of a chat completion. Raises ApiError 400, naming the item."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise invalid_value("input", "Invalid value for 'input': it is empty.")
    messages: list[Json] = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise invalid("invalid_type", f"Invalid value for '{where}': expected an object.", where)
        match item.get("type", "message"):
            case "message":
                message = {"role": item.get("role"), "content": _read_content(item.get("content"), where)}
                message = {name: value for name, value in message.items() if value is not None}
                read_message(message, where, [])  # only here is it known which item it was
                messages.append(message)
            case "function_call":
                _require_text(item, "name", where)
                call = {
                    "id": item.get("call_id"),
                    "type": "function",
                    "function": {"name": item.get("name"), "arguments": item.get("arguments", "")},
                }
                if messages and messages[-1]["role"] == "assistant":
                    messages[-1].setdefault("tool_calls", []).append(call)
                else:
                    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            case "function_call_output":
                if not isinstance(item.get("output"), list):
                    _require_text(item, "output", where)
                output = _read_content(item["output"], where, "output")
                messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
            case "reasoning":
                pass  # an earlier thought of ours, sent back: templates drop those of earlier turns
            case other:
                raise unsupported(f"{where}.type", f": '{str(other)[:40]}' items")
    return messages


def _require_text(item: Json, name: str, where: str) -> None:
    path, value = f"{where}.{name}", item.get(name)
    if value is None:
        raise invalid("missing_required_parameter", f"Missing required parameter: '{path}'.", path)
    if not isinstance(value, str):
        raise invalid("invalid_type", f"Invalid value for '{path}': expected a string.", path)


def _read_content(content: Any, where: str, name: str = "content") -> Any:
    if not isinstance(content, list):
        return content
    parts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in PART_KINDS:
            raise unsupported(
                f"{where}.{name}[{index}]", f": this model takes text, not '{str(kind)[:40]}' parts"
            )
        parts.append({"type": "text", "text": part.get("refusal" if kind == "refusal" else "text")})
    return parts


def list_output_messages(output: list[Json]) -> list[Json]:
    """Return a response's output as messages, for the next turn."""
    items = [item for item in output if item["type"] != "reasoning"]
    return read_input(items) if items else [{"role": "assistant", "content": ""}]
