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


@attrs.frozen(kw_only=True)
class ToolUse:
    """What a request says about calls. `functions` are all that are offered, by index in `tools`."""

    functions: tuple[Function, ...]
    choice: ToolChoice
    named: Function | None = None
    is_parallel: bool = True  # False: at most one call

    @property
    def names(self) -> frozenset[str]:
        """The functions' names."""
        return frozenset(function.name for function in self.functions)

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
    if isinstance(kind := choice.get("type"), str) and kind != "function":
        raise unsupported("tool_choice.type", f": only functions can be chosen, not '{kind[:40]}'")
    name = convert(choice, _Choice, "tool_choice").function.name
    for function in functions:
        if function.name == name:
            return ToolUse(functions=functions, choice=ToolChoice.NAMED, named=function)
    where = "tool_choice.function.name"
    raise invalid_value(where, f"'{where}' is '{name[:128]}', which is not among 'tools'.")


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
