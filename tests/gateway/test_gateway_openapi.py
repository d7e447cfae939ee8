"""`/openapi.json`: complete, consistent, and made from what reads the bodies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.routing import Route

from shell.gateway.admin import DRAIN_FIELDS
from shell.gateway.app import make_app
from shell.gateway.chat import CHAT_FIELDS
from shell.gateway.completions import COMPLETION_FIELDS
from shell.gateway.config import GatewayConfig
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldStatus, FieldTable
from shell.gateway.front import Front
from shell.gateway.openapi import describe_routes
from shell.gateway.requests import ABORT_FIELDS
from shell.gateway.service import Endpoint, make_service
from shell.gateway.slots import IMAGE_FIELDS
from shell.gateway.tokenize import DETOKENIZE_FIELDS
from tests.gateway.harness import Gateway


async def make_front() -> Front:
    """The application, wired but not running."""
    front = make_app(make_service(GatewayConfig()))
    assert isinstance(front, Front)
    return front


def references(value: Any) -> Iterator[str]:
    """Every `$ref` in a document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


async def test_every_route_is_described() -> None:
    """Each path and method of the router, no other, with a summary, an id of its own, and parameters."""
    front = await make_front()
    paths = describe_routes(front.router.routes)["paths"]
    routes = [route for route in front.router.routes if isinstance(route, Route)]
    assert len(routes) == len(front.router.routes)
    expected = {
        (re.sub(r":\w+\}", "}", route.path), method.lower())
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    operations = {
        (path, method): entry for path, methods in paths.items() for method, entry in methods.items()
    }
    assert operations.keys() == expected
    ids = [entry["operationId"] for entry in operations.values()]
    assert len(set(ids)) == len(ids)
    for (path, _), entry in operations.items():
        assert entry["summary"]
        named = [parameter["name"] for parameter in entry.get("parameters", [])]
        assert named == re.findall(r"\{(\w+)\}", path)
    public = {path for (path, _), entry in operations.items() if entry["security"] == []}
    assert public == {"/health", "/ping", "/version", "/ui", "/ui/{file}"}


async def test_a_new_route_appears_by_itself() -> None:
    """An endpoint with a struct is described without another line."""

    class Colour(msgspec.Struct):
        shade: int

    class Paint(Endpoint):
        """Paints a thing."""

        body_struct = Colour

        async def answer(self, exchange: Exchange) -> None:
            await exchange.respond_json(200, {})

    front = await make_front()
    routes = [*front.router.routes, Route("/paint/{thing}", Paint(front.service), methods=["POST"])]
    document = describe_routes(routes)
    entry = document["paths"]["/paint/{thing}"]["post"]
    assert entry["summary"] == "Paints a thing."
    schema = entry["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Colour"}
    assert document["components"]["schemas"]["Colour"]["properties"] == {"shade": {"type": "integer"}}


def test_the_served_document_holds_together(gateway: Gateway) -> None:
    """It comes over HTTP, and each reference has its schema."""
    document = gateway.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    found = set(references(document))
    assert "#/components/schemas/ChatBody" in found
    assert {name.rpartition("/")[2] for name in found} == document["components"]["schemas"].keys()


@pytest.mark.parametrize(
    ("path", "table"),
    [
        ("/v1/chat/completions", CHAT_FIELDS),
        ("/v1/completions", COMPLETION_FIELDS),
        ("/detokenize", DETOKENIZE_FIELDS),
        ("/drain", DRAIN_FIELDS),
        ("/abort_request", ABORT_FIELDS),
        ("/slots/{id}", IMAGE_FIELDS),
    ],
)
async def test_bodies_have_every_field_that_is_read(path: str, table: FieldTable) -> None:
    """What the endpoint's table calls implemented is a property of the schema, and nothing else is."""
    document = describe_routes((await make_front()).router.routes)
    entry = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][entry["$ref"].rpartition("/")[2]]
    implemented = {name for name, field in table.items() if field.status is FieldStatus.IMPLEMENTED}
    assert schema["properties"].keys() == implemented
