"""Chat messages: checked, and put into the plain form that templates take."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shell.gateway.errors import invalid, unsupported
from shell.gateway.fields import FieldTable, accepted, convert, implemented, refused, take_fields

Json = dict[str, Any]

MESSAGE_FIELDS: FieldTable = {
    **implemented(
        "role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content", "refusal"
    ),
    **accepted("annotations"),  # of answers by others, sent back
    **refused(audio=(), function_call=()),
}
PART_SEPARATOR = "\n"
MAX_MESSAGES = 8192  # to check them takes two microseconds each


class MessageFields(msgspec.Struct, kw_only=True):
    """One message. `content` may be missing where the role allows it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Any] | None = None
    name: str | None = None
    tool_calls: list[Json] = []
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


def read_messages(given: Any, ignored: list[str]) -> list[Json]:
    """Check the `messages` of a body, nulls dropped, and return them as a template takes them.

    `developer` becomes `system`; text parts are joined; a refusal is what an assistant said in place of a
    content; the arguments of earlier tool calls become objects.

    Raises:
        ApiError: 400 with the path of the field at fault, such as `messages[0].content[1]`.
    """
    if given is None:
        raise invalid("missing_required_parameter", "Missing required parameter: 'messages'.", "messages")
    if not isinstance(given, list):
        raise invalid("invalid_type", "Invalid value for 'messages': expected an array.", "messages")
    if not given:
        raise invalid("invalid_value", "Invalid value for 'messages': it is empty.", "messages")
    if len(given) > MAX_MESSAGES:
        message = f"Invalid value for 'messages': it has {len(given)} entries; the limit is {MAX_MESSAGES}."
        raise invalid("invalid_value", message, "messages")
    return [read_message(message, f"messages[{index}]", ignored) for index, message in enumerate(given)]


def count_characters(messages: list[Json]) -> int:
    """Return how much text there is to render and encode."""
    return sum(len(message["content"]) for message in messages)


def read_message(given: Any, path: str, ignored: list[str]) -> Json:
    """Likewise one message, whose fields are named from `path` on. Raises ApiError 400."""
    if not isinstance(given, dict):
        raise invalid("invalid_type", f"Invalid value for '{path}': expected an object.", path)
    message = convert(take_fields(given, MESSAGE_FIELDS, ignored, path), MessageFields, path)
    if message.content is None and message.role != "assistant":
        where = f"{path}.content"
        raise invalid("missing_required_parameter", f"Missing required parameter: '{where}'.", where)
    plain: Json = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _join_parts(message.content or message.refusal, f"{path}.content"),
    }
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if reasoning is not None:
        plain["reasoning_content"] = reasoning
    if message.tool_calls:
        plain["tool_calls"] = [
            _read_tool_call(call, f"{path}.tool_calls[{index}]")
            for index, call in enumerate(message.tool_calls)
        ]
    return plain


def _join_parts(content: str | list[Any] | None, path: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        kind = "text" if isinstance(part, str) else part.get("type") if isinstance(part, dict) else None
        text = part if isinstance(part, str) else part.get(kind) if isinstance(kind, str) else None
        if not isinstance(kind, str):
            raise invalid(
                "invalid_type", f"Invalid value for '{where}': expected an object with a 'type'.", where
            )
        if kind not in ("text", "refusal"):
            raise unsupported(where, f": this model takes text, not '{kind[:40]}' parts")
        if not isinstance(text, str):
            raise invalid(
                "invalid_type", f"Invalid value for '{where}.{kind}': expected a string.", f"{where}.{kind}"
            )
        texts.append(text)
    return PART_SEPARATOR.join(texts)


def _read_tool_call(call: Json, path: str) -> Json:
    """Give templates the arguments as an object; text that is no JSON object stays text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        where = f"{path}.function"
        raise invalid(
            "invalid_type", f"Invalid value for '{where}': expected an object with a 'name'.", where
        )
    arguments = function.get("arguments", "")
    if isinstance(arguments, str):
        try:
            parsed = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            parsed = None
        if isinstance(parsed, dict):
            arguments = parsed
    return {**call, "function": {**function, "arguments": arguments}}
