"""Keys, tenants and limits at the HTTP door: who gets in, through which session, and what the headers say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from shell.gateway.sessions import read_key
from syscalls.errno import Errno, SyscallError
from syscalls.process import Spawn
from syscalls.tenant import Exceeded, Rate, Rates
from tests.gateway.harness import PATIENCE_SECONDS, Gateway, KernelThread, hello, running_gateway, say_forever
from tests.gateway.test_gateway_errors import CHAT, check_error

KEYS = {"key-of-alice": "alice", "key-of-bob": "bob"}
RATES = Rates(Rate(60.0, 58.9, 1.1), Rate(1000.0, -20.5, 61.23))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KernelThread, Gateway]]:
    """A kernel whose tenants have keys, and its gateway."""
    folder = tmp_path_factory.mktemp("locked")
    with KernelThread(folder / "kernel", KEYS) as kernel:
        with running_gateway(kernel, folder / "gateway", wait=False) as gateway:
            for _ in range(int(PATIENCE_SECONDS / 0.02)):
                if gateway.get("/health").status_code == 200:
                    break
            yield kernel, gateway


def bearer(key: str) -> dict[str, str]:
    """The header of a key."""
    return {"authorization": f"Bearer {key}"}


def test_without_keys_any_key_or_none_will_do(gateway: Gateway) -> None:
    """As long as nobody has a key, the gateway's own session serves all."""
    for headers in ({}, bearer("whatever"), {"x-api-key": "x"}):
        assert gateway.post(CHAT, hello(), headers=headers).status_code == 200


def test_a_key_is_needed_for_all_but_health(locked: tuple[KernelThread, Gateway]) -> None:
    """No key and a wrong one are 401, whatever the page; three pages are public."""
    _, gateway = locked
    for path in ("/health", "/ping", "/version"):
        assert gateway.get(path).status_code == 200
    for headers in (
        {},
        bearer("key-of-carol"),
        {"x-api-key": "no"},
        {"authorization": "Basic x"},
    ):
        for path in ("/v1/models", "/v1/models/x", "/metrics", "/health/ready"):
            check_error(gateway.get(path, headers=headers), 401, "invalid_api_key")
        response = gateway.post(CHAT, hello(), headers=headers)
        error = check_error(response, 401, "invalid_api_key")
        assert error["type"] == "invalid_request_error"
        assert response.headers["www-authenticate"] == "Bearer"
        assert "carol" not in error["message"]
    for headers in (bearer("key-of-bob"), {"api-key": "key-of-bob"}, {"x-api-key": "key-of-bob"}):
        assert gateway.get("/v1/models", headers=headers).status_code == 200
        assert gateway.get("/metrics", headers=headers).status_code == 200
    assert "key-of" not in gateway.log_path.read_text()


def test_the_description_says_where_a_key_is_needed(locked: tuple[KernelThread, Gateway]) -> None:
    """Each operation of `/openapi.json` without a key: 401 exactly where it says so."""
    _, gateway = locked
    document = gateway.get("/openapi.json", headers=bearer("key-of-bob")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            response = httpx.request(
                method, f"{gateway.url}{path}", headers={"x-llmos-page": "1"}, timeout=PATIENCE_SECONDS
            )
            assert (response.status_code == 401) == bool(operation["security"]), (method, path)


def tenants_logged(gateway: Gateway) -> list[str | None]:
    """The tenant of each chat request in the log."""
    lines = gateway.log_lines()
    return [line.get("tenant") for line in lines if line["event"] == "request" and line["path"] == CHAT]


def test_each_key_has_a_session(locked: tuple[KernelThread, Gateway]) -> None:
    """A tenant's processes are spawned in its own session, one for each key, and the log names it."""
    kernel, gateway = locked
    kernel.reset()
    for key in ("key-of-alice", "key-of-bob", "key-of-alice", "key-of-alice"):
        assert gateway.post(CHAT, hello(), headers=bearer(key)).status_code == 200
    sessions = [process.session for process in kernel.kernel.spawned]
    assert [session.tenant for session in sessions] == ["alice", "bob", "alice", "alice"]
    assert len({id(session) for session in sessions}) == 2
    expected = ["alice", "bob", "alice", "alice"]
    # A line is written when its answer has been read.
    kernel.wait_until(lambda: tenants_logged(gateway)[-4:] == expected)


def test_the_official_client_sees_the_right_exceptions(locked: tuple[KernelThread, Gateway]) -> None:
    """AuthenticationError, RateLimitError with its headers; and it retries when it is told to."""
    kernel, gateway = locked
    kernel.reset()
    with OpenAI(base_url=gateway.base_url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    refusal = SyscallError(Errno.EDQUOT, "60 a minute", Exceeded("requests_per_minute", 60.0, 0.25, RATES))
    kernel.kernel.refusals[Spawn] = refusal
    fields = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
    with OpenAI(base_url=gateway.base_url, api_key="key-of-alice", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**fields)
        assert caught.value.response.headers["retry-after-ms"] == "250"
        assert caught.value.code == "rate_limit_exceeded"
    num_calls = len([call for call in kernel.kernel.calls if isinstance(call, Spawn)])
    refusal.exceeded = Exceeded("tokens_per_minute", 9.0, None)
    with OpenAI(base_url=gateway.base_url, api_key="key-of-alice", max_retries=3) as client:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**fields)
    assert len([call for call in kernel.kernel.calls if isinstance(call, Spawn)]) == num_calls + 1
    kernel.reset()


@pytest.mark.parametrize(
    ("limit", "retry", "kind", "headers"),
    [
        ("requests_per_minute", 0.25, "requests", {"retry-after": "1", "retry-after-ms": "250"}),
        ("tokens_per_minute", 12.01, "tokens", {"retry-after": "13", "retry-after-ms": "12010"}),
        ("max_waiting", 1.0, "requests", {"retry-after": "1", "retry-after-ms": "1000"}),
        ("tokens_per_minute", None, "tokens", {"x-should-retry": "false"}),
    ],
)
def test_a_limit_is_a_429(
    gateway: Gateway,
    kernel: KernelThread,
    limit: str,
    retry: float | None,
    kind: str,
    headers: dict[str, str],
) -> None:
    """Its type says what is limited, its headers when to come back and what is left."""
    exceeded = Exceeded(limit, 60.0, retry, RATES)
    kernel.kernel.refusals[Spawn] = SyscallError(Errno.EDQUOT, f"{limit} of tenant a is 60", exceeded)
    for body in (hello(), hello(stream=True)):
        response = gateway.post(CHAT, body)
        error = check_error(response, 429, "rate_limit_exceeded")
        assert error["type"] == kind
        assert limit in error["message"]
        told = {
            name: response.headers.get(name) for name in ("retry-after", "retry-after-ms", "x-should-retry")
        }
        assert {name: value for name, value in told.items() if value is not None} == headers
        assert rate_limit_headers(response)["remaining-tokens"] == "0"


def test_a_spent_budget_is_no_rate(gateway: Gateway, kernel: KernelThread) -> None:
    """429 `insufficient_quota`, which nobody's library tries again."""
    exceeded = Exceeded("token_budget", 1000.0, None)
    message = "token_budget of tenant a is 1000: 9 tokens more, 4 left; it does not come back"
    kernel.kernel.refusals[Spawn] = SyscallError(Errno.EDQUOT, message, exceeded)
    for body in (hello(), hello(stream=True)):
        response = gateway.post(CHAT, body)
        error = check_error(response, 429, "insufficient_quota")
        assert error["type"] == "insufficient_quota"
        assert "9 tokens more, 4 left" in error["message"]
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers
    num_calls = len(kernel.kernel.calls)
    with OpenAI(base_url=gateway.base_url, api_key="any", max_retries=3) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.code == "insufficient_quota"
    spawns = [call for call in kernel.kernel.calls[num_calls:] if isinstance(call, Spawn)]
    assert len(spawns) == 1
    kernel.reset()


def rate_limit_headers(response: httpx.Response) -> dict[str, str]:
    """The x-ratelimit headers, without their prefix."""
    prefix = "x-ratelimit-"
    return {
        name.removeprefix(prefix): value
        for name, value in response.headers.items()
        if name.startswith(prefix)
    }


def test_answers_tell_what_is_left(gateway: Gateway, kernel: KernelThread) -> None:
    """Whole and streamed, for the limits that are set; no header where there is none."""
    for body in (hello(), hello(stream=True)):
        kernel.kernel.rates = None
        assert rate_limit_headers(gateway.post(CHAT, body)) == {}
        kernel.kernel.rates = RATES
        assert rate_limit_headers(gateway.post(CHAT, body)) == {
            "limit-requests": "60", "remaining-requests": "58", "reset-requests": "1.100s",
            "limit-tokens": "1000", "remaining-tokens": "0", "reset-tokens": "61.230s",
        }  # fmt: skip
        kernel.kernel.rates = Rates(requests=RATES.requests)
        assert "limit-tokens" not in rate_limit_headers(gateway.post(CHAT, body))


def test_sessions_are_opened_again(tmp_path: Path) -> None:
    """A kernel that comes back finds the same keys; requests in flight are told, later ones are served."""
    folder = tmp_path / "kernel"
    with KernelThread(folder, KEYS) as first:
        with running_gateway(first, tmp_path / "gateway", wait=False) as gateway:
            first.wait_until(lambda: gateway.get("/health").status_code == 200)
            assert gateway.post(CHAT, hello(), headers=bearer("key-of-bob")).status_code == 200
            first.program = say_forever
            with httpx.stream(
                "POST", f"{gateway.url}{CHAT}", json=hello(stream=True, max_tokens=4000),
                headers=bearer("key-of-bob"), timeout=PATIENCE_SECONDS,
            ) as stream:  # fmt: skip
                events = stream.iter_lines()
                next(events)
                first.__exit__()
                assert any("model_loading" in event for event in events)
            assert gateway.post(CHAT, hello(), headers=bearer("key-of-bob")).status_code == 503
            with KernelThread(folder, KEYS) as second:
                second.wait_until(lambda: gateway.get("/health").status_code == 200)
                assert gateway.post(CHAT, hello(), headers=bearer("key-of-bob")).status_code == 200
                assert [process.session.tenant for process in second.kernel.spawned] == ["bob"]


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], ""),
        ([(b"authorization", b"Bearer  abc ")], "abc"),
        ([(b"authorization", b"bearer abc")], "abc"),
        ([(b"authorization", b"Basic abc")], ""),
        ([(b"authorization", b"Bearer")], ""),
        ([(b"x-api-key", b"abc")], "abc"),
        ([(b"authorization", b"Basic abc"), (b"api-key", b"k")], "k"),
    ],
)
def test_where_a_key_may_stand(headers: list[tuple[bytes, bytes]], key: str) -> None:
    """Three headers; another scheme of authorization is no key."""
    assert read_key(headers) == key
