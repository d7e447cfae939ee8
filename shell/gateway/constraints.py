"""What a body says that the answer must look like, under the names of OpenAI, vLLM, SGLang and llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import msgspec

from shell.gateway.errors import ApiError, invalid, invalid_value, unsupported
from shell.gateway.fields import FieldTable, implemented, refused, take_fields
from shell.gateway.sampler_fields import SamplerFields
from syscalls.sampling import MAX_GRAMMAR_CHARACTERS
from syscalls.text.grammar import (
    ANY_OBJECT,
    BadGrammar,
    choice_grammar,
    explain_bad_grammar,
    explain_bad_schema,
    json_grammar,
    read_grammar,
    regex_grammar,
)

__all__ = ["CONSTRAINT_FIELDS", "Constraint", "ConstraintFields", "compile_constraint", "read_constraint"]

CONSTRAINT_FIELDS = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "regex", "ebnf", "json_schema", "grammar",
)  # fmt: skip
_STRUCTURED_FIELDS: FieldTable = {
    **implemented("json", "regex", "choice", "grammar", "json_object"),
    **refused(
        structural_tag=(), whitespace_pattern=(), disable_any_whitespace=False, disable_fallback=False,
        disable_additional_properties=False,
    ),
}  # fmt: skip
_KINDS = {
    "guided_json": "json", "json_schema": "json", "guided_regex": "regex", "guided_choice": "choice",
    "guided_grammar": "grammar", "ebnf": "grammar",
}  # fmt: skip


class ConstraintFields(SamplerFields, kw_only=True):  # structs have one base
    """Body fields, of which one at most asks for something."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: dict[str, Any] | str | bool | None = None
    grammar: str = ""  # what llama.cpp's clients send for none


@attrs.frozen
class Constraint:
    """One of them: `kind` is json, regex, choice or grammar, `param` the field it came in."""

    kind: str
    value: Any
    param: str

    @property
    def num_characters(self) -> int:
        """About how much there is to compile."""
        return len(self.value) if isinstance(self.value, str) else len(msgspec.json.encode(self.value))


def read_constraint(fields: ConstraintFields, ignored: list[str]) -> Constraint | None:
    """Find the constraint of a body; None: the answer is free. Raises ApiError 400: for two, too."""
    found = list(_list_constraints(fields, ignored))
    if len(found) > 1:
        one, other = found[:2]
        message = f"'{one.param}' and '{other.param}' both say what the answer must look like: send one."
        raise invalid_value(other.param, message)
    return found[0] if found else None


def _list_constraints(fields: ConstraintFields, ignored: list[str]) -> Iterator[Constraint]:
    if fields.response_format is not None:
        yield from _read_response_format(fields.response_format)
    if fields.structured_outputs is not None:
        given = {name: value for name, value in fields.structured_outputs.items() if value is not None}
        taken = take_fields(given, _STRUCTURED_FIELDS, ignored, "structured_outputs")
        for name, value in taken.items():
            param = f"structured_outputs.{name}"
            if name == "json_object":
                if not isinstance(value, bool):
                    raise invalid("invalid_type", f"'{param}' must be true or false.", param)
                if value:
                    yield Constraint("json", ANY_OBJECT, param)
            else:
                yield _check_type(Constraint(name, value, param))
    for name in CONSTRAINT_FIELDS[2:]:
        value = getattr(fields, name)
        if value is not None and (name, value) != ("grammar", ""):
            yield _check_type(Constraint(_KINDS.get(name, name), value, name))


def _read_response_format(given: dict[str, Any]) -> Iterator[Constraint]:
    kind = given.get("type")
    if kind == "text":
        return
    if kind == "json_object":  # llama.cpp takes a schema here, too
        schema, param = given.get("schema"), "response_format.schema"
        if schema is None:
            schema, param = ANY_OBJECT, "response_format"
    elif kind == "json_schema":
        inner = given.get("json_schema")
        is_flat = inner is None
        schema = given.get("schema") if is_flat else inner.get("schema") if isinstance(inner, dict) else None
        param = "response_format.schema" if is_flat else "response_format.json_schema.schema"
        if schema is None:
            param = "response_format.json_schema.schema"
            raise invalid("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    elif kind == "structural_tag":
        raise unsupported(
            "response_format.type", ": 'text', 'json_object' and 'json_schema' are, not 'structural_tag'"
        )
    else:
        message = "'response_format.type' must be 'text', 'json_object' or 'json_schema'."
        raise invalid_value("response_format.type", message)
    yield _check_type(Constraint("json", schema, param))


def _check_type(constraint: Constraint) -> Constraint:
    kind, value, param = constraint.kind, constraint.value, constraint.param
    if kind == "json":
        if isinstance(value, str):
            try:
                value = msgspec.json.decode(value)
            except (msgspec.DecodeError, RecursionError) as error:
                raise invalid("invalid_json_schema", f"'{param}' is not JSON: {error}.", param) from None
        is_right, wanted = isinstance(value, dict | bool), "an object, or its text"
    elif kind == "choice":
        is_right = isinstance(value, list) and all(isinstance(choice, str) for choice in value)
        wanted = "a list of strings"
    else:
        is_right, wanted = isinstance(value, str), "a string"
    if not is_right:
        raise invalid("invalid_type", f"'{param}' must be {wanted}.", param)
    return attrs.evolve(constraint, value=value)


def compile_constraint(constraint: Constraint) -> str:
    """Return a grammar that can be followed. Takes milliseconds or more: not for the event loop.

    Raises:
        ApiError: 400 `invalid_json_schema` or `invalid_grammar`, naming the part at fault.
    """
    kind, value, param = constraint.kind, constraint.value, constraint.param
    code = "invalid_json_schema" if kind == "json" else "invalid_grammar"
    problem: str | None
    if constraint.num_characters > MAX_GRAMMAR_CHARACTERS:
        raise invalid(code, f"'{param}' is longer than {MAX_GRAMMAR_CHARACTERS} characters.", param)
    try:
        if kind == "json":
            grammar, problem = json_grammar(value), explain_bad_schema(value)
        else:
            makers = {"regex": regex_grammar, "choice": choice_grammar, "grammar": read_grammar}
            grammar = makers[kind](value)
            problem = explain_bad_grammar(grammar)
    except BadGrammar as error:
        problem = str(error)
    if problem is not None:
        raise _complain(code, param, problem)
    return grammar


def _complain(code: str, param: str, problem: str) -> ApiError:
    what = "schema" if code == "invalid_json_schema" else "grammar"
    return invalid(code, f"Invalid {what} for '{param}': {problem[:500]}.", param)
