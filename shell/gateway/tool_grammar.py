"""The grammar of an answer that must be a call, or whose calls or text must obey their schemas.

Written in the dialect of Lark that llguidance reads. Calls have the form that the model was taught, which is
the one in which its parser expects calls that are certain. A thought may stand before them. Marks that are
tokens of their own are named by id: the library never takes such a token for text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import attrs

from shell.gateway.errors import invalid
from shell.gateway.parsers.tool_parser import ToolParser
from shell.gateway.tools import Function, ToolUse
from syscalls.text.grammar import ANY_OBJECT, explain_bad_schema, join_grammars, write_schema

Json = dict[str, Any]

MAX_CALLS = 32  # in a row; a model that finds no end is led to one
_KINDS = ("type", "$ref", "anyOf", "oneOf", "allOf")
SCHEMA_CHARACTERS = 500  # a guess at one schema's length, for where to do the work


def find_loose(tool_use: ToolUse) -> frozenset[str]:
    """Return the functions whose schema cannot be enforced and need not be.

    Raises:
        ApiError: 400 `invalid_json_schema`: it must be, since the function is strict.
    """
    loose = []
    for index, function in enumerate(tool_use.functions):
        if (problem := explain_bad_schema(function.schema)) is None:
            continue
        if function.strict:
            where = f"tools[{index}].function.parameters"
            raise invalid("invalid_json_schema", f"Invalid schema for '{where}': {problem}.", where)
        loose.append(function.name)
    return frozenset(loose)


def wants_grammar(tool_use: ToolUse) -> bool:
    """True when calls are forced, some function is strict, or some may not be called."""
    if tool_use.is_forced or tool_use.allowed is not None:
        return True
    return any(function.strict for function in tool_use.functions)


@attrs.frozen(kw_only=True)
class CallGrammar:
    """Writes the grammar for one request.

    Args:
        tool_use: the functions, and whether one must be called; None: there are none, but an `answer`.
        parser: who will read the text.
        mark_ids: marks of the format, and around thoughts, that are tokens of their own: their ids.
        reasoning_marks: around a thought; None: the model has none.
        is_thinking: the prompt has opened a thought.
        loose: functions whose schema is not enforced, because it cannot be: any object will do.
        answer: grammar of an answer without a call; None: any text.
    """

    tool_use: ToolUse | None
    parser: type[ToolParser]
    mark_ids: Mapping[str, int] = {}
    reasoning_marks: tuple[str, str] | None = None
    is_thinking: bool = False
    loose: frozenset[str] = frozenset()
    answer: str | None = None

    def write(self) -> str:
        """Return the whole grammar."""
        rules = ["TEXT: /(?s:.*)/"]
        thought = self._write_thought(rules)
        if self.tool_use is None:
            start = "@answer"
        else:
            rules += self._write_calls(self.tool_use)
            if self.tool_use.is_forced:
                start = "calls"
            elif self.answer is not None:
                start = "(calls | @answer)"
            else:
                start = self._write_free_text(self.tool_use, rules)
        source = "\n".join([f"start: {thought}{start}", *rules, ""])
        return join_grammars(source, answer=self.answer) if self.answer is not None else source

    def _write_calls(self, tool_use: ToolUse) -> list[str]:
        style = self.parser.STYLE
        functions = tool_use.callable_functions
        rules = [f"named: {' | '.join(f'named_{index}' for index in range(len(functions)))}"]
        for index, function in enumerate(functions):
            head, tail = (
                self._spell(function.name + style.before_arguments),
                self._spell(style.after_arguments),
            )
            rules.append(f"named_{index}: {head} arguments_{index} {tail}")
            rules.append(f"arguments_{index}: %json {write_schema(self._schema(tool_use, function))}")
        num_more = 0 if tool_use.has_one_call else MAX_CALLS - 1
        more = f"({self._spell(style.separator)} call){{0,{num_more}}}" if num_more else ""
        rules.append(f"call: {self._spell(style.before_name)} named")
        rules.append(f"rest: {more} {self._spell(style.closing)}")
        rules.append(f"calls: {self._spell(style.opening)} call rest")
        return rules

    def _schema(self, tool_use: ToolUse, function: Function) -> Json:
        if function.name in self.loose or not (tool_use.is_forced or function.strict):
            return ANY_OBJECT
        if function.parameters is None:
            return {"type": "object", "additionalProperties": False}
        schema = function.parameters
        return schema if any(kind in schema for kind in _KINDS) else {"type": "object", **schema}

    def _write_thought(self, rules: list[str]) -> str:
        if self.reasoning_marks is None:
            return ""
        opens, closes = self.reasoning_marks
        rules.append(self._write_until("thought", closes))
        rules.append("GAP: /\\n{1,4}/")
        return "thought GAP? " if self.is_thinking else f"({self._spell(opens)} thought GAP?)? "

    def _write_until(self, name: str, mark: str) -> str:
        """Write the rule for any text up to a mark, and the mark."""
        if mark in self.mark_ids:
            return f"{name}: TEXT <[{self.mark_ids[mark]}]>"
        return f"{name}[suffix={json.dumps(mark)}]: TEXT"

    def _write_free_text(self, tool_use: ToolUse, rules: list[str]) -> str:
        """Add the rules of a text that may hold calls. Returns what it begins with.

        Where calls have a mark, what follows one is a call. Where they have none, a call is the whole answer,
        and an answer that is no call must not begin like one.
        """
        style = self.parser.STYLE
        lead = style.opening + style.before_name
        mark = next((mark for mark in self.parser.MARKUP if lead.startswith(mark)), None)
        if mark is None:
            rules += ["ANSWER: TEXT & ~BEGUN", r"BEGUN: /[ \t\r\n]*(\{|\[|```)(?s:.*)/"]
            return "(calls | ANSWER)"
        rules.append(self._write_until("before", mark))
        rules.append(f"item: before {self._spell(lead.removeprefix(mark))} named rest")
        if mark in self.mark_ids:
            rules.append("TAIL: TEXT")
        else:
            rules += ["TAIL: TEXT & ~MARKED", f"MARKED: TEXT {json.dumps(mark)} TEXT"]
        return "(item | TAIL)" if tool_use.has_one_call else f"item{{0,{MAX_CALLS}}} TAIL"

    def _spell(self, text: str) -> str:
        """Write a literal text, marks that are tokens by their ids."""
        if not text:
            return ""
        marks = "|".join(map(re.escape, self.mark_ids))
        parts = re.split(f"({marks})", text) if marks else [text]
        return " ".join(
            f"<[{self.mark_ids[part]}]>" if part in self.mark_ids else json.dumps(part)
            for part in parts
            if part
        )
