"""A conversation as a model's template can take it, which may know nothing of tools."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from shell.gateway.parsers.style import CallStyle

Json = dict[str, Any]

SHORT_ID_LENGTH = 9

_TOOLS = re.compile(r"\btools\b")
_DOCUMENTS = re.compile(r"\bdocuments\b")
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_SHORT_ID_RULE = re.compile(r"length\s*!=\s*9")  # Mistral's templates refuse any other


def takes_tools(template: str) -> bool:
    """True when a template writes tools itself."""
    return _TOOLS.search(template) is not None


def takes_documents(template: str) -> bool:
    """True when a template writes documents."""
    return _DOCUMENTS.search(template) is not None


def adapt_messages(
    messages: Sequence[Json],
    template: str,
    tools: Sequence[Json],
    style: CallStyle,
    *,
    is_native: bool,
) -> list[Json]:
    """Return a conversation in the form that a template takes.

    Without its help the functions are described in the system message, calls are text of the
    assistant and results are text of the user. Where it wants ids of nine characters, ids get such a form.

    Args:
        messages: as `read_messages` gives them.
        template: its source.
        tools: functions on offer.
        style: how the model is told to write calls.
        is_native: the template writes tools, calls and results.
    """
    if is_native:
        return (
            [_shorten_ids(message) for message in messages]
            if _SHORT_ID_RULE.search(template)
            else [*messages]
        )
    adapted: list[Json] = []
    is_result = False  # the last message holds results
    for message in messages:
        was_result, is_result = is_result, message["role"] == "tool"
        if is_result:
            name = message.get("name") or message.get("tool_call_id") or "the call"
            text = f"Result of {name}: {message['content']}"
            if was_result:  # many templates want users and assistants to take turns
                adapted[-1]["content"] += f"\n{text}"
            else:
                adapted.append({"role": "user", "content": text})
        elif calls := message.get("tool_calls"):
            written = style.write((call["function"]["name"], _spell(call["function"])) for call in calls)
            text = f"{message['content']}\n{written}" if message["content"] else written
            adapted.append({"role": "assistant", "content": text})
        else:
            adapted.append(dict(message))
    if tools:
        described = describe_tools(tools, style)
        if adapted[0]["role"] == "system":
            adapted[0]["content"] += f"\n\n{described}"
        else:
            adapted.insert(0, {"role": "system", "content": described})
    return adapted


def describe_tools(tools: Sequence[Json], style: CallStyle) -> str:
    """Tell a model in words what it may call and how."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    form = style.write([("NAME", "{ARGUMENTS}")])
    return (
        "These functions can be called. To call one, answer with nothing but its name and its arguments as "
        f"JSON, in this form:\n{form}\nThe functions, with the JSON schemas of their arguments:\n"
        + "\n".join(lines)
    )


def _spell(function: Json) -> str:
    arguments = function.get("arguments") or {}
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _shorten_ids(message: Json) -> Json:
    """Put call ids into nine letters and digits; equal ids stay equal."""
    short = dict(message)
    if (given := short.get("tool_call_id")) is not None:
        short["tool_call_id"] = _shorten(given)
    if "tool_calls" in short:
        short["tool_calls"] = [
            {**call, "id": _shorten(call["id"])} if isinstance(call.get("id"), str) else call
            for call in short["tool_calls"]
        ]
    return short


def _shorten(given: str) -> str:
    if _SHORT_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:SHORT_ID_LENGTH]
