"""`/openapi.json`: complete, consistent, and made from what reads the bodies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest
from starlette.routing import Route

from shell.gateway.admin import DRAIN_FIELDS, REASONS
from shell.gateway.app import make_app
from shell.gateway.chat import CHAT_FIELDS
from shell.gateway.completions import COMPLETION_FIELDS
from shell.gateway.config import GatewayConfig
from shell.gateway.embeddings import EMBEDDING_FIELDS
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldStatus, FieldTable
from shell.gateway.front import Front
from shell.gateway.infill import INFILL_FIELDS
from shell.gateway.openapi import describe_routes
from shell.gateway.requests import ABORT_FIELDS
from shell.gateway.rerank import RERANK_FIELDS
from shell.gateway.response_input import RESPONSE_FIELDS
from shell.gateway.score import SCORE_FIELDS
from shell.gateway.service import Endpoint, make_service
from shell.gateway.slots import IMAGE_FIELDS
from shell.gateway.tokenize import DETOKENIZE_FIELDS
from tests.gateway.harness import Gateway, KernelThread, hello, running_gateway, say_scored
from tests.gateway.test_gateway_errors import CHAT

CALL = '{"name": "weather", "arguments": {"city": "Bern"}}'
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KernelThread, Gateway]]:
    """A kernel and a gateway for this module: stored responses keep processes."""
    folder = tmp_path_factory.mktemp("openapi")
    with KernelThread(folder / "kernel") as kernel:
        with running_gateway(kernel, folder / "gateway") as gateway:
            yield kernel, gateway


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
        named = [each["name"] for each in entry.get("parameters", []) if each["in"] == "path"]
        assert named == re.findall(r"\{(\w+)\}", path)
    public = {path for (path, _), entry in operations.items() if entry["security"] == []}
    assert public == {"/health", "/ping", "/version", "/ui", "/ui/{file}"}
    # Those without an answer of their own are refused, always.
    assert {path for (path, _), entry in operations.items() if "200" not in entry["responses"]} == set(
        REASONS
    )


class Colour(msgspec.Struct):
    """A body."""

    shade: int
    gloss: float | None = None
    is_wet: bool = False


class Paintwork(msgspec.Struct):
    """An answer."""

    colours: list[str]


class Order(msgspec.Struct):
    """A query."""

    coats: int = 1


async def test_a_new_route_appears_by_itself() -> None:
    """An endpoint with a struct is described without another line."""

    class Paint(Endpoint):
        """Paints a thing."""

        body_type = Colour
        answer_type = Paintwork
        query_struct = Order

        async def answer(self, exchange: Exchange) -> None:
            await exchange.respond_json(200, {})

    front = await make_front()
    routes = [*front.router.routes, Route("/paint/{thing}", Paint(front.service), methods=["POST"])]
    document = describe_routes(routes)
    entry = document["paths"]["/paint/{thing}"]["post"]
    assert entry["summary"] == "Paints a thing."
    schema = entry["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Colour"}
    answer = entry["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/Paintwork"}
    assert [(each["name"], each["in"], each["required"]) for each in entry["parameters"]] == [
        ("thing", "path", True),
        ("coats", "query", False),
    ]
    # In a body null is absent.
    colour = document["components"]["schemas"]["Colour"]
    assert colour["required"] == ["shade"]
    assert colour["properties"]["shade"] == {"type": "integer"}
    assert colour["properties"]["gloss"]["anyOf"] == [{"type": "number"}, {"type": "null"}]
    assert colour["properties"]["is_wet"]["anyOf"] == [{"type": "boolean"}, {"type": "null"}]


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
        ("/v1/embeddings", EMBEDDING_FIELDS),
        ("/v1/rerank", RERANK_FIELDS),
        ("/v1/score", SCORE_FIELDS),
        ("/infill", INFILL_FIELDS),
        ("/detokenize", DETOKENIZE_FIELDS),
        ("/drain", DRAIN_FIELDS),
        ("/abort_request", ABORT_FIELDS),
        ("/slots/{id}", IMAGE_FIELDS),
        ("/v1/responses", RESPONSE_FIELDS),
    ],
)
async def test_bodies_have_every_field_that_is_read(path: str, table: FieldTable) -> None:
    """What the endpoint's table calls implemented is a property of the schema, and nothing else is."""
    document = describe_routes((await make_front()).router.routes)
    entry = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][entry["$ref"].rpartition("/")[2]]
    implemented = {name for name, field in table.items() if field.status is FieldStatus.IMPLEMENTED}
    assert schema["properties"].keys() == implemented


TOKENS = {"return_token_ids": True, "return_token_times": True}
RICH_BODIES = [
    (CHAT, hello(logprobs=True, top_logprobs=2, n=2, timings_per_token=True, **TOKENS)),
    (CHAT, hello(prompt_logprobs=1, stop="l", include_reasoning=False)),
    (CHAT, hello(tools=[TOOL], tool_choice="required")),
    (CHAT, hello(tools=[TOOL])),
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "logprobs": 2, "echo": True, "stop_token_ids": [108]}),
    ("/v1/completions", {"prompt": [1, 2], "prompt_logprobs": 0, "ignore_eos": True, **TOKENS}),
    ("/v1/responses", {"input": "hi", "instructions": "Be short.", "metadata": {"a": "b"}}),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "function", **TOOL["function"]}], "store": False}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2, "text": {"format": {"type": "json_object"}}}),
]


@pytest.mark.parametrize("is_call", [False, True])
@pytest.mark.parametrize(("path", "body"), RICH_BODIES)
def test_answers_and_events_fit_their_schemas(
    place: tuple[KernelThread, Gateway], path: str, body: dict[str, Any], is_call: bool
) -> None:
    """Whole and streamed, of text and of calls: no field but those that are described, of their types."""
    kernel, gateway = place
    kernel.program = say_scored(CALL if is_call else "hello")
    document = gateway.get("/openapi.json").json()
    content = document["paths"][path]["post"]["responses"]["200"]["content"]

    def check(value: Any, schema: dict[str, Any]) -> None:
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)

    whole = gateway.post(path, body)
    assert whole.status_code == 200, whole.text
    check(whole.json(), content["application/json"]["schema"])
    more: dict[str, Any] = {"stream": True}
    if path != "/v1/responses":
        more["stream_options"] = {"include_usage": True}
    if "prompt_logprobs" in body:
        body = {name: value for name, value in body.items() if name != "prompt_logprobs"}
    streamed = gateway.post(path, {**body, **more})
    assert streamed.status_code == 200, streamed.text
    described = content["text/event-stream"]["schema"]["properties"]["data"]["anyOf"][1]
    lines = [line for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert len(lines) >= 3
    for line in lines:
        event = json.loads(line.removeprefix("data: "))
        assert "error" not in event
        check(event, described["contentSchema"])
    kernel.reset()
