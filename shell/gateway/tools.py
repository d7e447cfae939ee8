"""The functions that a request offers, and which of them must or may be called."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import attrs
import msgspec
from msgspec import Meta

from shell.gateway.errors import invalid, invalid_value, unsupported
from shell.gateway.fields import FieldTable, convert, implemented, take_fields

Json = dict[str, Any]

MAX_TOOLS = 1024
TOOL_FIELDS: FieldTable = implemented("type", "function")
FUNCTION_FIELDS: FieldTable = implemented("name", "description", "parameters", "strict")
NO_PARAMETERS: Json = {"type": "object", "properties": {}}


class ToolChoice(enum.Enum):
    """Whether calls are made."""

    AUTO = "auto"  # as the model likes
    REQUIRED = "required"  # at least one
    NAMED = "named"  # one, of this function


class Function(msgspec.Struct, kw_only=True, frozen=True):
    """A function that may be called. `parameters` is a JSON schema; None: it takes none."""

    name: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\s\"\\\[\]{}<>]*$")]
    description: str | None = None
    parameters: Json | None = None
    strict: bool = False

    @property
    def schema(self) -> Json:
        """The JSON schema of its arguments."""
        return self.parameters or NO_PARAMETERS


class _Named(msgspec.Struct):
    name: str


class _Choice(msgspec.Struct):
    type: Literal["function"]
    function: _Named


class _AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: Annotated[list[_Choice], Meta(min_length=1, max_length=MAX_TOOLS)]


class _AllowedChoice(msgspec.Struct):
    allowed_tools: _AllowedTools


@attrs.frozen(kw_only=True)
class ToolUse:
    """What a request says about calls. `functions` are all that the model is told of, by index in `tools`."""

    functions: tuple[Function, ...]
    choice: ToolChoice
    named: Function | None = None
    allowed: frozenset[str] | None = None  # names of those that may be called; None: all may
    is_parallel: bool = True  # False: at most one call

    @property
    def callable_functions(self) -> tuple[Function, ...]:
        """Those of which a call may be made."""
        if self.named is not None:
            return (self.named,)
        if self.allowed is None:
            return self.functions
        return tuple(function for function in self.functions if function.name in self.allowed)

    @property
    def names(self) -> frozenset[str]:
        """The names of those functions."""
        return frozenset(function.name for function in self.callable_functions)

    @property
    def is_forced(self) -> bool:
        """True when the answer must be a call."""
        return self.choice is not ToolChoice.AUTO

    @property
    def has_one_call(self) -> bool:
        """True when the answer ends with its first call."""
        return self.named is not None or not self.is_parallel

    def describe(self) -> list[Json]:
        """The functions as chat templates take them."""
        return [
            {
                "type": "function",
                "function": {
                    "name": function.name,
                    **({"description": function.description} if function.description is not None else {}),
                    **({"parameters": function.parameters} if function.parameters is not None else {}),
                },
            }
            for function in self.functions
        ]


def read_tool_use(
    tools: list[Json], choice: str | Json | None, parallel: bool, ignored: list[str]
) -> ToolUse | None:
    """Check `tools`, `tool_choice` and `parallel_tool_calls`.

    Returns:
        None when no call is to be made: without tools, or with `tool_choice` "none".

    Raises:
        ApiError: 400 with the path of the field at fault.
    """
    if len(tools) > MAX_TOOLS:
        raise invalid_value("tools", f"'tools' has {len(tools)} entries; the limit is {MAX_TOOLS}.")
    functions = tuple(_read_function(tool, f"tools[{index}]", ignored) for index, tool in enumerate(tools))
    for index, function in enumerate(functions):
        if function.name in {other.name for other in functions[:index]}:
            where = f"tools[{index}].function.name"
            raise invalid_value(where, f"'{where}' is '{function.name}', which an earlier one has.")
    if choice is None or choice == "auto":
        return (
            ToolUse(functions=functions, choice=ToolChoice.AUTO, is_parallel=parallel) if functions else None
        )
    if choice == "none":
        return None
    if not functions:
        raise invalid_value("tool_choice", "'tool_choice' is only allowed when 'tools' are given.")
    if choice == "required":
        return ToolUse(functions=functions, choice=ToolChoice.REQUIRED, is_parallel=parallel)
    if isinstance(choice, str):
        message = "'tool_choice' must be 'none', 'auto', 'required' or an object that names a function."
        raise invalid_value("tool_choice", message)
    kind = choice.get("type")
    if kind == "allowed_tools":
        return _read_allowed(functions, choice, parallel)
    if isinstance(kind, str) and kind != "function":
        raise unsupported("tool_choice.type", f": only functions can be chosen, not '{kind[:40]}'")
    name = convert(choice, _Choice, "tool_choice").function.name
    for function in functions:
        if function.name == name:
            return ToolUse(functions=functions, choice=ToolChoice.NAMED, named=function)
    where = "tool_choice.function.name"
    raise invalid_value(where, f"'{where}' is '{name[:128]}', which is not among 'tools'.")


def _read_allowed(functions: tuple[Function, ...], choice: Json, parallel: bool) -> ToolUse:
    """The model is told of all functions, as in every request of the conversation, and calls some only."""
    allowed = convert(choice, _AllowedChoice, "tool_choice").allowed_tools
    known = {function.name for function in functions}
    for index, each in enumerate(allowed.tools):
        if each.function.name not in known:
            where = f"tool_choice.allowed_tools.tools[{index}].function.name"
            message = f"'{where}' is '{each.function.name[:128]}', which is not among 'tools'."
            raise invalid_value(where, message)
    return ToolUse(
        functions=functions,
        choice=ToolChoice(allowed.mode),
        allowed=frozenset(each.function.name for each in allowed.tools),
        is_parallel=parallel,
    )


def _read_function(tool: Json, path: str, ignored: list[str]) -> Function:
    given = take_fields(
        {key: value for key, value in tool.items() if value is not None}, TOOL_FIELDS, ignored, path
    )
    kind = given.get("type", "function")
    if kind != "function":
        raise unsupported(
            f"{path}.type", f": only tools of type 'function' can be called, not '{str(kind)[:40]}'"
        )
    where = f"{path}.function"
    if not isinstance(function := given.get("function"), dict):
        raise invalid("missing_required_parameter", f"Missing required parameter: '{where}'.", where)
    plain = {key: value for key, value in function.items() if value is not None}
    return convert(take_fields(plain, FUNCTION_FIELDS, ignored, where), Function, where)
