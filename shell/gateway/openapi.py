"""`GET /openapi.json`: the routes as they are, described by the structs that read bodies and tell answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import attrs
import msgspec
from starlette.routing import BaseRoute, Route

from shell.gateway.exchange import Exchange
from shell.gateway.health import find_version
from shell.gateway.service import Endpoint

Json = dict[str, Any]

OPENAPI_VERSION = "3.1.0"
REFERENCE = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


class ErrorDetail(msgspec.Struct, forbid_unknown_fields=True):
    """What went wrong, in the one shape that every error has."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def describe_routes(routes: Iterable[BaseRoute]) -> Json:
    """Return the OpenAPI document of `routes`.

    A new route appears by itself: its endpoint's docstring is the summary, its types are the schemas. Bodies
    may have more fields than that (ignored, and listed), so their schemas are open; and null is absent there.
    """
    described = [(route, route.endpoint) for route in routes if isinstance(route, Route)]
    endpoints = [endpoint for _, endpoint in described if isinstance(endpoint, Endpoint)]
    bodies = _Schemas(endpoint.body_type for endpoint in endpoints)
    answers = _Schemas([ErrorBody, *(each for e in endpoints for each in (e.answer_type, e.event_type))])
    for component in bodies.components.values():
        _allow_null(component)
    paths: Json = {}
    for route, endpoint in described:
        path = _PARAMETER.sub(r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _describe(path, method, endpoint, bodies, answers)
    keys = {"type": "http", "scheme": "bearer", "description": "needed once the kernel has keys"}
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "llmos", "version": find_version()},
        "paths": paths,
        "components": {
            "schemas": {**bodies.components, **answers.components},
            "securitySchemes": {"key": keys},
        },
    }


class _Schemas:
    """The schemas of some types, with components for the structs in them."""

    def __init__(self, types: Iterable[Any]) -> None:
        # A union of structs without tags has no order to decode it in, but a description needs none.
        self._members = {each: _members(each) for each in types if each is not None}
        flat = sorted({member for group in self._members.values() for member in group}, key=str)
        schemas, self.components = msgspec.json.schema_components(flat, ref_template=REFERENCE)
        self._schemas = dict(zip(flat, schemas, strict=True))

    def of(self, wanted: Any) -> Json:
        """Return the schema of one of the types."""
        found = [self._schemas[member] for member in self._members[wanted]]
        return found[0] if len(found) == 1 else {"anyOf": found}


def _members(given: Any) -> tuple[Any, ...]:
    return get_args(given) if isinstance(given, type(int | str)) else (given,)


def _allow_null(component: Json) -> None:
    required = component.get("required", [])
    for name, schema in component.get("properties", {}).items():
        if name not in required and {"type": "null"} not in schema.get("anyOf", []):
            outer = {"default": schema.pop("default")} if "default" in schema else {}
            component["properties"][name] = {"anyOf": [schema, {"type": "null"}], **outer}


def _describe(path: str, method: str, endpoint: Any, bodies: _Schemas, answers: _Schemas) -> Json:
    error = {"schema": answers.of(ErrorBody)}
    operation: Json = {
        "summary": (type(endpoint).__doc__ or "").partition("\n")[0],
        "operationId": f"{method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', path).rstrip('_')}",
        "responses": {"default": {"description": "an error", "content": {"application/json": error}}},
        "security": [] if getattr(endpoint, "is_public", False) else [{"key": []}],
    }
    if content := dict(_describe_answers(endpoint, answers)):
        operation["responses"]["200"] = {"description": "done", "content": content}
    if parameters := [*_describe_path(path), *_describe_query(endpoint)]:
        operation["parameters"] = parameters
    if (body := getattr(endpoint, "body_type", None)) is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": bodies.of(body)}}}
    return operation


def _describe_answers(endpoint: Any, answers: _Schemas) -> Iterator[tuple[str, Json]]:
    """Media types of an answer: JSON, a stream of events, and those that no schema says more of."""
    if not isinstance(endpoint, Endpoint):
        return
    if endpoint.answer_type is not None:
        yield "application/json", {"schema": answers.of(endpoint.answer_type)}
    if endpoint.event_type is not None:
        yield "text/event-stream", {"schema": _describe_event(endpoint.event_type, answers)}
    for media_type in endpoint.media_types:
        yield media_type, {"schema": {"type": "string"}}


def _describe_event(event_type: Any, answers: _Schemas) -> Json:
    """One event of a stream: what a schema is of where this version of OpenAPI has no word for streams."""
    content = {"anyOf": [answers.of(event_type), answers.of(ErrorBody)]}
    written = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    data = {"anyOf": [{"const": "[DONE]"}, written]}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}


def _describe_path(path: str) -> Iterator[Json]:
    for name in _PARAMETER.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _describe_query(endpoint: Any) -> Iterator[Json]:
    struct = getattr(endpoint, "query_struct", None)
    if struct is None:
        return
    for field in msgspec.structs.fields(struct):
        schema = msgspec.json.schema(field.type)
        schema = next((each for each in schema.pop("anyOf", []) if each != {"type": "null"}), schema)
        yield {"name": field.name, "in": "query", "required": field.required, "schema": schema}


@attrs.define(eq=False)
class OpenApi(Endpoint):
    """Describes every route, for tools that make clients and tests from a description."""

    name = "openapi"
    answer_type = dict[str, Any]
    routes: list[BaseRoute]  # the router's own list, so that none is forgotten
    _document: Json | None = None  # made when first asked for: it takes tens of ms, and routes stay

    async def answer(self, exchange: Exchange) -> None:
        """Send the document."""
        if self._document is None:
            self._document = describe_routes(self.routes)
        await exchange.respond_json(200, self._document)
