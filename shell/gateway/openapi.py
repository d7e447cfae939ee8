"""`GET /openapi.json`: the routes as they are, described by the structs that read their bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs
import msgspec
from starlette.routing import BaseRoute, Route

from shell.gateway.exchange import Exchange
from shell.gateway.health import find_version
from shell.gateway.service import Endpoint

OPENAPI_VERSION = "3.1.0"
REFERENCE = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


class ErrorDetail(msgspec.Struct):
    """What went wrong, in the one shape that every error has."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def describe_routes(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the OpenAPI document of `routes`.

    A new route appears by itself: its endpoint's docstring is the summary, its `body_struct` the schema of
    its body. Bodies may have more fields than that (ignored, and listed), so no schema is closed.
    """
    described = [(route, route.endpoint) for route in routes if isinstance(route, Route)]
    structs = {struct for _, endpoint in described if (struct := _body_struct(endpoint)) is not None}
    ordered = [*sorted(structs, key=lambda struct: struct.__name__), ErrorBody]
    _, components = msgspec.json.schema_components(ordered, ref_template=REFERENCE)
    paths: dict[str, Any] = {}
    for route, endpoint in described:
        path = _PARAMETER.sub(r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _describe(path, method, endpoint)
    keys = {"type": "http", "scheme": "bearer", "description": "needed once the kernel has keys"}
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "llmos", "version": find_version()},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": keys}},
    }


def _body_struct(endpoint: Any) -> type[msgspec.Struct] | None:
    return endpoint.body_struct if isinstance(endpoint, Endpoint) else None


def _describe(path: str, method: str, endpoint: Any) -> dict[str, Any]:
    error = {"schema": {"$ref": REFERENCE.format(name=ErrorBody.__name__)}}
    operation: dict[str, Any] = {
        "summary": (type(endpoint).__doc__ or "").partition("\n")[0],
        "operationId": f"{method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', path).rstrip('_')}",
        "responses": {
            "200": {"description": "done"},
            "default": {"description": "an error", "content": {"application/json": error}},
        },
        "security": [] if getattr(endpoint, "is_public", False) else [{"key": []}],
    }
    if names := _PARAMETER.findall(path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if (struct := _body_struct(endpoint)) is not None:
        schema = {"$ref": REFERENCE.format(name=struct.__name__)}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return operation


@attrs.define(eq=False)
class OpenApi(Endpoint):
    """Describes every route, for tools that make clients and tests from a description."""

    name = "openapi"
    routes: list[BaseRoute]  # the router's own list, so that none is forgotten
    _document: dict[str, Any] | None = None  # made when first asked for: it takes 12 ms, and routes stay

    async def answer(self, exchange: Exchange) -> None:
        """Send the document."""
        if self._document is None:
            self._document = describe_routes(self.routes)
        await exchange.respond_json(200, self._document)
