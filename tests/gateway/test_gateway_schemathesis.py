"""Whatever a generator makes of `/openapi.json`: no 5xx, answers as it says, and bad fields are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from shell.gateway.app import make_app
from shell.gateway.config import GatewayConfig
from shell.gateway.front import Front
from shell.gateway.service import make_service
from tests.gateway.harness import PATIENCE_SECONDS, Gateway, KernelThread, hello, running_gateway, say_scored

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis comes with the extra [dev]")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

# Named here and not read from a gateway, so that tests are collected without one.
front = make_app(make_service(GatewayConfig()))
assert isinstance(front, Front)
OPERATIONS = [
    (method, route.path.replace(":path", ""))
    for route in front.router.routes
    if isinstance(route, Route)
    for method in sorted((route.methods or set()) - {"HEAD"})
    if route.path != "/ui/stream"  # it has no end: tests/system/test_page.py reads it
]
CONFORMANCE = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
QUIET = settings(
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KernelThread, Gateway, Any]]:
    """A kernel, a gateway and its description; stored responses keep processes, so none is shared."""
    folder = tmp_path_factory.mktemp("schemathesis")
    with KernelThread(folder / "kernel") as kernel:
        with running_gateway(kernel, folder / "gateway", "--max-responses", "50") as gateway:
            document = gateway.get("/openapi.json").json()
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation.pop("security")  # this kernel has no keys, so none is needed
            yield kernel, gateway, schemathesis.openapi.from_dict(document)


def plain_body(path: str, known: dict[str, str]) -> Any:
    """A body that is answered with 200; None: the route has none."""
    return {
        "/v1/chat/completions": hello(),
        "/v1/completions": {"prompt": "hi"},
        "/v1/responses": {"input": "hi"},
        "/tokenize": {"prompt": "hi"},
        "/detokenize": {"tokens": [104]},
        "/apply-template": hello(),
        "/abort_request": {"rid": known["id"]},
        "/slots/{id}": {"filename": "image"},
        "/ui/process/{pid}/{action}": {"nice": 3},
        "/drain": {},
    }.get(path)


def make_known(gateway: Gateway, path: str) -> dict[str, str]:
    """What there is, by the name of the parameter: a response, its process, a model, a file."""
    begun = gateway.post("/v1/responses", {"input": "hi", "background": True}).json()["id"]
    (process,) = gateway.get(f"/v1/requests/{begun}").json()["processes"]
    pid = str(process["pid"])
    return {
        "id": pid if path.startswith("/slots") else begun,
        "pid": pid,
        "action": "nice",
        "model": "scripted",
        "file": "index.html",
    }


def steer(case: Any, known: dict[str, str], plain: Any) -> None:
    """Make a request be about what there is: else most would be refused for a name, or a message."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = known[name]
    if isinstance(case.body, dict):
        case.body.pop("model", None)
        case.body.pop("previous_response_id", None)
        case.body.update(plain or {})
    if case.query:
        case.query.pop("model", None)


def check_operation(place: tuple[KernelThread, Gateway, Any], method: str, path: str, num: int) -> None:
    """Send bodies, queries and paths that fit the description, and such as do not."""
    kernel, gateway, schema = place
    kernel.reset()
    kernel.call(lambda: kernel.kernel.models.__delitem__(slice(1, None)))  # what was loaded
    gateway.post("/wake_up", {})  # the gateway looks at once which models are left, and nothing sleeps
    kernel.program = say_scored("hello")  # log-probabilities may be asked for
    operation = schema[path][method]
    known = make_known(gateway, path)
    plain = plain_body(path, known)
    headers = {"x-llmos-page": "1"}
    described = schema.raw_schema["paths"][path][method.lower()]["responses"]
    if "200" in described and (plain is not None or not operation.body):
        url = path.format(**known) + ("?action=save" if path == "/slots/{id}" else "")
        response = httpx.request(
            method, f"{gateway.url}{url}", json=plain, headers=headers, timeout=PATIENCE_SECONDS
        )
        assert response.status_code == 200, response.text
        operation.validate_response(response)
        known = make_known(gateway, path)  # it may be gone now

    @settings(QUIET, max_examples=num)
    @given(case=operation.as_strategy(), is_steered=st.booleans())
    def fits(case: Any, is_steered: bool) -> None:
        if is_steered:
            steer(case, known, plain)
        response = case.call(base_url=gateway.url, headers=headers, timeout=PATIENCE_SECONDS)
        case.validate_response(response, checks=CONFORMANCE)

    fits()
    if not (operation.body or operation.query):
        return  # any text fits a path

    @settings(QUIET, max_examples=num)
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def does_not_fit(case: Any) -> None:
        response = case.call(base_url=gateway.url, headers=headers, timeout=PATIENCE_SECONDS)
        case.validate_response(response, checks=[*CONFORMANCE, checks.negative_data_rejection])

    does_not_fit()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_described(place: tuple[KernelThread, Gateway, Any], method: str, path: str) -> None:
    """A few of each kind."""
    check_operation(place, method, path, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_many_answers_are_as_described(
    place: tuple[KernelThread, Gateway, Any], method: str, path: str
) -> None:
    """Many of each kind."""
    check_operation(place, method, path, 100)
