"""Request fields: which we do, which we accept, which we refuse, and how a body becomes a struct.

Each endpoint has one table, name → `Field`. One mechanism reads it: null counts as absent at any depth,
a known field that we do not do is refused by name unless its value asks for nothing, an unknown one is
ignored and listed. What remains is converted to a msgspec struct, whose complaints become errors with the
path of the field.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs
import msgspec

from shell.gateway.errors import ApiError, invalid, unsupported

T = TypeVar("T", bound=msgspec.Struct)

# Free-form values: a null inside is the client's own data, not an absent field of ours.
OPAQUE_FIELDS = frozenset(
    {
        "response_format", "tools", "metadata", "chat_template_kwargs", "structured_outputs", "documents",
        "guided_json", "json_schema",
    }
)  # fmt: skip

_COMPLAINT = re.compile(r"^(?P<text>.*?)(?: - at `(?P<key>key in )?\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$")
_TYPE_COMPLAINT = re.compile(r"^Expected `[^`]*`, got `[^`]*`$")


class FieldStatus(enum.Enum):
    """What happens to a field of a body."""

    IMPLEMENTED = "implemented"
    ACCEPTED = "accepted"  # any value; without effect here, by contract or because its switch is refused
    UNSUPPORTED = "unsupported"  # refused by name, unless the value asks for nothing


@attrs.frozen
class Field:
    """One row of a table. `neutral` are the values of an unsupported field that ask for nothing."""

    status: FieldStatus
    neutral: tuple[Any, ...] = ()


FieldTable = Mapping[str, Field]


def implemented(*names: str) -> dict[str, Field]:
    """Rows for fields that we do."""
    return dict.fromkeys(names, Field(FieldStatus.IMPLEMENTED))


def accepted(*names: str) -> dict[str, Field]:
    """Rows for fields that may have any value."""
    return dict.fromkeys(names, Field(FieldStatus.ACCEPTED))


def refused(**neutral: Any) -> dict[str, Field]:
    """Rows for fields that we do not do: name = neutral value, or a tuple of several."""
    return {
        name: Field(FieldStatus.UNSUPPORTED, value if isinstance(value, tuple) else (value,))
        for name, value in neutral.items()
    }


def drop_nulls(value: Any) -> Any:
    """Return `value` without the null members of its objects, at any depth."""
    if isinstance(value, dict):
        return {
            name: inner if name in OPAQUE_FIELDS else drop_nulls(inner)
            for name, inner in value.items()
            if inner is not None
        }
    # Token ids come in lists of a hundred thousand: the first tells that there is nothing to drop.
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [drop_nulls(inner) for inner in value]
    return value


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    # `1 == True` in Python, but 1 for a switch is somebody's mistake: types must agree, int and float aside.
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)


def take_fields(
    given: dict[str, Any], table: FieldTable, ignored: list[str], path: str = ""
) -> dict[str, Any]:
    """Check an object against its table and return the fields that we implement.

    Args:
        given: the object, nulls dropped.
        table: what to do with each field.
        ignored: gets the path of each unknown field.
        path: of the object itself, "" for the body.

    Raises:
        ApiError: 400 `unsupported_parameter` for the first field that is refused.
    """
    taken = {}
    for name, value in given.items():
        field = table.get(name)
        here = f"{path}.{name}" if path else name
        if field is None:
            ignored.append(here)
        elif field.status is FieldStatus.IMPLEMENTED:
            taken[name] = value
        elif field.status is FieldStatus.UNSUPPORTED and not _is_neutral(value, field.neutral):
            raise unsupported(here)
    return taken


def read_fields(given: dict[str, Any], table: FieldTable, to: type[T], ignored: list[str]) -> T:
    """`take_fields` of a body, converted to a struct. Raises ApiError 400."""
    return convert(take_fields(given, table, ignored), to)


def explain_complaint(error: msgspec.ValidationError, path: str = "") -> ApiError:
    """Turn msgspec's complaint into a 400 with the path of the field at fault."""
    match = _COMPLAINT.match(str(error))
    assert match is not None  # the pattern matches every text
    text = match["text"]
    where = path + (match["path"] or "") if path else (match["path"] or "").lstrip(".")
    where = where.removesuffix("[...]")  # a value of a free-form object: its name is not told
    if missing := _MISSING.match(text):
        name = f"{where}.{missing['name']}" if where else missing["name"]
        return invalid("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    code = "invalid_type" if _TYPE_COMPLAINT.match(text) else "invalid_value"
    subject = f"'{where}'" if where else "the request body"
    return invalid(code, f"Invalid value for {subject}: {text[:1].lower()}{text[1:]}.", where or None)


def convert(fields: dict[str, Any], to: type[T], path: str = "") -> T:
    """Convert checked fields to a struct. Raises ApiError 400, naming the field."""
    try:
        return msgspec.convert(fields, to)
    except msgspec.ValidationError as error:
        raise explain_complaint(error, path) from None
