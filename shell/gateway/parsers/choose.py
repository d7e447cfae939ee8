"""Which format a model writes calls and thoughts in: told by the operator, or seen in its chat template."""

from __future__ import annotations

from collections.abc import Mapping

from shell.gateway.parsers.generic import JsonParser
from shell.gateway.parsers.hermes import HermesParser
from shell.gateway.parsers.llama3 import Llama3Parser
from shell.gateway.parsers.mistral import MistralNamedParser, MistralParser
from shell.gateway.parsers.tool_parser import ToolParser

AUTO = "auto"

TOOL_PARSERS: Mapping[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "llama3": Llama3Parser,
    "mistral": MistralParser,
    "mistral-named": MistralNamedParser,
    "json": JsonParser,
}

# Marks around a thought, by name of the format.
REASONING_MARKS: Mapping[str, tuple[str, str]] = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
}


def choose_tool_parser(option: str, template: str) -> type[ToolParser]:
    """Return the parser for a model's calls.

    Args:
        option: a key of TOOL_PARSERS, or "auto".
        template: the source of the chat template that a call with tools would use; "" when there is none.
    """
    if option != AUTO:
        return TOOL_PARSERS[option]
    if "[TOOL_CALLS]" in template:
        return MistralNamedParser if "[ARGS]" in template else MistralParser
    if "<tool_call>" in template and "<function=" not in template:
        return HermesParser
    if "<|start_header_id|>" in template and ("<|python_tag|>" in template or '"parameters"' in template):
        return Llama3Parser
    return JsonParser


def choose_reasoning_marks(option: str, template: str) -> tuple[str, str] | None:
    """Return the marks around a model's thoughts, or None when it has none.

    Args:
        option: a key of REASONING_MARKS, "auto" or "none".
        template: the source of the chat template; "" when there is none.
    """
    if option != AUTO:
        return REASONING_MARKS.get(option)
    return next((marks for marks in REASONING_MARKS.values() if marks[1] in template), None)
