"""docs/openai-compat.md: tests and routes that it names are there; what had no test has one here."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shell.gateway.app import make_app
from shell.gateway.chat import CHAT_FIELDS
from shell.gateway.completions import COMPLETION_FIELDS
from shell.gateway.config import GatewayConfig
from shell.gateway.embeddings import EMBEDDING_FIELDS
from shell.gateway.front import Front
from shell.gateway.openapi import describe_routes
from shell.gateway.response_input import RESPONSE_FIELDS
from shell.gateway.service import make_service
from tests.gateway.harness import ROOT, Gateway, KernelThread, hello, running_gateway
from tests.gateway.test_gateway_errors import CHAT, COMPLETIONS, check_error
from tests.scripted_kernel import make_model, write_model_folder
from tests.syscalls.text.data import SHARED_DATA

PAGE = (ROOT / "docs" / "openai-compat.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))
# Of the page's table of errors, and 507 for a disk that is full.
STATUSES = {400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 507}


def list_tests(path: Path) -> set[str]:
    """The tests of a file."""
    body = ast.parse(path.read_text()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_is_named_exists(file: str) -> None:
    """A test that was renamed or dropped is found here."""
    assert {name for where, name in NAMED if where == file} <= list_tests(ROOT / "tests" / file)


def test_every_line_has_a_test_or_says_why_not() -> None:
    """Rows have three cells: what is kept or differs names a test."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    rows = [row for row in rows if not row.startswith(("| rule |", "| item |"))]
    assert len(rows) > 120
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 3, row
        assert re.findall(r"`[\w/]+\.py::\w+`", cells[2]) or cells[1].startswith("not kept"), row


async def test_every_route_is_on_the_page() -> None:
    """Those of `/openapi.json`, which a test of its own holds to the router."""
    front = make_app(make_service(GatewayConfig()))
    assert isinstance(front, Front)
    paths = describe_routes(front.router.routes)["paths"]
    named = set(re.findall(r"(?<![\w/])/[\w{}/.-]+", PAGE))
    assert paths.keys() <= named
    methods = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    for method, path in re.findall(r"`(GET|POST|DELETE) (/[^` ?]*)", PAGE):
        assert (method, path) in methods


def test_statuses_are_those_of_the_table() -> None:
    """Every error is made with a status that is written down; none with 409 or 422, which clients retry."""
    found = set()
    for path in (ROOT / "shell" / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:  # that of what is no HTTP at all is found out, not written down
                case ast.Call(func=ast.Name(id="ApiError"), args=[ast.Constant(value=status), *_]):
                    found.add(status)
    assert found == STATUSES


def test_a_fingerprint_is_of_the_configuration(gateway: Gateway, kernel: KernelThread) -> None:
    """As the kernel made it, with the prefix that clients know; without one, of the weights."""
    before = kernel.kernel.models[0]
    told = []
    try:
        for fingerprint in ("fp_0123", "0123", "", "fp_0123"):
            kernel.kernel.models[0] = msgspec.structs.replace(before, fingerprint=fingerprint)
            gateway.get("/v1/models")  # the gateway sees it
            told.append(gateway.post(CHAT, hello()).json()["system_fingerprint"])
    finally:
        kernel.kernel.models[0] = before
        gateway.get("/v1/models")
    assert told == ["fp_0123", "fp_0123", f"fp_{before.hash[:12]}", "fp_0123"]


def test_defaults_are_the_models_or_openais(tmp_path: Path) -> None:
    """Where a request is silent the model's generation_config.json speaks, if the operator lets it."""
    with KernelThread(tmp_path / "kernel") as kernel:
        folder = write_model_folder(tmp_path / "model")
        config = {"temperature": 0.25, "top_k": 7, "min_p": 0.5, "do_sample": True}
        (folder / "generation_config.json").write_bytes(msgspec.json.encode(config))
        kernel.kernel.models[0] = make_model(folder, "scripted")
        for origin, expected in (("model", (0.25, 7, 0.5)), ("openai", (1.0, 0, 0.0))):
            with running_gateway(kernel, tmp_path / origin, "--sampling-defaults", origin) as gateway:
                assert gateway.post(CHAT, hello()).status_code == 200
                sampling = kernel.kernel.spawned[-1].spawn.sampling
                assert (sampling.temperature, sampling.top_k, sampling.min_p) == expected
                assert gateway.post(CHAT, hello(temperature=0.75)).status_code == 200
                assert kernel.kernel.spawned[-1].spawn.sampling.temperature == 0.75


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u"}, {"metadata": {"a": "b"}}, {"store": True}, {"service_tier": "flex"},
        {"verbosity": "low"}, {"safety_identifier": "s"}, {"prompt_cache_key": "k"},
        {"prompt_cache_options": {"ttl": "24h"}}, {"prompt_cache_retention": "24h"},
        {"spaces_between_special_tokens": False},
    ],
)  # fmt: skip
def test_what_is_accepted_without_effect(
    gateway: Gateway, kernel: KernelThread, fields: dict[str, Any]
) -> None:
    """The same process as without it, and nothing is called ignored."""
    for body in (hello(), hello(**fields)):
        response = gateway.post(CHAT, body, headers={"x-request-id": "same"})
        assert response.status_code == 200
        assert "x-llmos-ignored-params" not in response.headers
    assert kernel.kernel.spawned[-2].spawn == kernel.kernel.spawned[-1].spawn


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": [{"name": "f"}]}, {"function_call": {"name": "f"}}, {"audio": {"voice": "x"}},
        {"modalities": ["text", "audio"]}, {"web_search_options": {}}, {"prediction": {"type": "content"}},
        {"lora": [{"id": 0, "scale": 1}]}, {"lora_path": "x"}, {"speculative": {"mode": "ngram"}},
        {"moderation": {"model": "x"}},
    ],
)  # fmt: skip
def test_refused_fields(gateway: Gateway, kernel: KernelThread, fields: dict[str, Any]) -> None:
    """By name, before anything is spawned; those of no message in text completions as well."""
    (name,) = fields
    check_error(gateway.post(CHAT, hello(**fields)), 400, "unsupported_parameter", name)
    if name in ("lora", "lora_path", "speculative"):
        body = {"prompt": "x", **fields}
        check_error(gateway.post(COMPLETIONS, body), 400, "unsupported_parameter", name)
    assert not kernel.kernel.spawned


REFERENCE = SHARED_DATA / "openai-openapi" / "openapi.yaml"


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference's description is not there")
def test_every_field_of_the_reference_is_known() -> None:
    """Done, accepted or refused by name: what a client of the reference sends is never passed over."""
    yaml = pytest.importorskip("yaml")
    schemas = yaml.load(REFERENCE.read_bytes(), yaml.CSafeLoader)["components"]["schemas"]

    def list_fields(schema: dict[str, Any]) -> Iterator[str]:
        yield from schema.get("properties", {})
        if "$ref" in schema:
            yield from list_fields(schemas[schema["$ref"].rpartition("/")[2]])
        for part in itertools.chain.from_iterable(schema.get(key, ()) for key in ("allOf", "anyOf", "oneOf")):
            yield from list_fields(part)

    for name, table in (
        ("CreateChatCompletionRequest", CHAT_FIELDS),
        ("CreateCompletionRequest", COMPLETION_FIELDS),
        ("CreateEmbeddingRequest", EMBEDDING_FIELDS),
        ("CreateResponse", RESPONSE_FIELDS),
    ):
        fields = set(list_fields(schemas[name]))
        assert len(fields) >= 5
        assert fields <= set(table), name
