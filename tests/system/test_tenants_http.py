"""Tenants on a real server over HTTP: a flood beside a light one, memory that is capped, and closed doors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from llmos.bench.server import Server, running_server
from syscalls.sync import SyncClient
from tests.system.leaks import assert_no_leak, count

LIMITS = {"flood": "", "light": "min_nice = 0", "small": "max_resident_mib = 1"}
KEYS = {name: f"sk-llmos-{name}-{'y' * 30}" for name in LIMITS}
NUM_FLOOD = 16
LONG = 1900  # tokens: nearly a context, so that nothing of the flood is over soon
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Places for four processes; small frames, so that a MiB is worth counting."""
    tables = [
        f'[tenant.{name}]\nkeys_sha256 = ["{hashlib.sha256(KEYS[name].encode()).hexdigest()}"]\n{lines}\n'
        for name, lines in LIMITS.items()
    ]
    path = tmp_path_factory.mktemp("tenants") / "tenants.toml"
    path.write_text("".join(tables))
    options = ("--device", "cpu", "--threads", "1", "--weights", "bf16", "--kv", "bf16", "--frame-kib", "16")
    with running_server(
        *options, "--pool-mib", "64", "--max-running", "4", "--tenants", str(path)
    ) as running:
        for name in KEYS:  # the gateway keeps a session for each key that it has seen
            assert get(running, name, "/v1/models").status_code == 200
        before = count(running)
        yield running
        assert_no_leak(running, before)


def get(server: Server, name: str, path: str) -> httpx.Response:
    """Fetch a page with a tenant's key."""
    return httpx.get(f"{server.url}{path}", headers={"x-api-key": KEYS[name]}, timeout=60)


def complete(
    server: Server,
    name: str,
    number: int = 0,
    num_prompt: int = 60,
    http: httpx.Client | None = None,
    **fields: object,
) -> httpx.Response:
    """Complete a prompt of a tenant's own, greedily and to its limit."""
    prompt = [300 + (number * 31 + i) % 200 for i in range(num_prompt)]
    body = {"prompt": prompt, "temperature": 0, "ignore_eos": True, "max_tokens": 100, **fields}
    headers = {"x-api-key": KEYS[name]}
    post = partial(httpx.post, timeout=120) if http is None else http.post
    return post(f"{server.url}/v1/completions", json=body, headers=headers)


def test_a_flood_does_not_keep_the_light_one_waiting(server: Server) -> None:
    """One tenant sends sixteen long requests at once; another's short ones are done before half of them."""
    with (
        ThreadPoolExecutor(NUM_FLOOD) as pool,
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=NUM_FLOOD)) as http,
        SyncClient(server.socket_path) as client,
    ):
        flood = partial(complete, server, "flood", max_tokens=LONG, http=http)
        answers = [pool.submit(flood, number) for number in range(NUM_FLOOD)]
        while client.statistics().num_waiting < NUM_FLOOD - 8:
            assert not any(answer.done() for answer in answers)
        for number in range(4):
            assert complete(server, "light", number, max_tokens=20).status_code == 200
        assert sum(answer.done() for answer in answers) < NUM_FLOOD // 2
        for process in client.ps(everyone=True):
            if process.tenant == "flood" and process.status is None:
                client.kill(process.pid)
        assert {answer.result().status_code for answer in answers} <= {200, 500}


def test_memory_is_capped_for_one_and_not_for_others(server: Server) -> None:
    """Six requests of half a MiB under a cap of one: never more is held, all are answered as for others."""
    texts = {n: complete(server, "light", n, num_prompt=300).json()["choices"][0]["text"] for n in range(6)}
    peak = 0
    with ThreadPoolExecutor(6) as pool:
        for _ in range(20):  # on a busy machine all may be answered before somebody looks
            answers = [pool.submit(complete, server, "small", n, num_prompt=300) for n in range(6)]
            while not all(answer.done() for answer in answers):
                rows = get(server, "small", "/v1/requests").json()["data"]
                assert {row["tenant"] for row in rows} <= {"small"}
                peak = max(peak, sum(row["kv_bytes"] for row in rows))
            for number, answer in enumerate(answers):
                assert answer.result().json()["choices"][0]["text"] == texts[number]
            if peak > MIB // 4:
                break
        assert MIB // 4 < peak <= MIB
    refused = complete(server, "small", max_tokens=1900)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_memory", "invalid_request_error")
    assert "tenant small may have memory" in error["message"]
    assert complete(server, "light", max_tokens=1900).status_code == 200


def test_doors_that_a_tenants_key_does_not_open(server: Server) -> None:
    """Administrators' routes are 403; another tenant's request is one that does not exist."""
    headers = {"x-api-key": KEYS["light"]}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as light:
        for method, path in (("POST", "/drain"), ("GET", "/is_sleeping"), ("POST", "/reset_prefix_cache")):
            refused = light.request(method, path)
            assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
        refused = complete(server, "light", priority=1)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (403, "permission_denied", "priority")
        assert error["message"].startswith(
            "'priority' is over what you may ask for: nice is -1; tenant light"
        )
        assert complete(server, "light", priority=-20, max_tokens=1).status_code == 200
        with light.stream(
            "POST",
            "/v1/completions",
            json={"prompt": "x", "max_tokens": LONG, "ignore_eos": True, "stream": True},
        ) as stream:
            own = stream.headers["x-llmos-pid"]
            button = {"headers": {"x-api-key": KEYS["light"], "x-llmos-page": "1"}, "json": {"nice": -5}}
            refused = httpx.post(f"{server.url}/ui/process/{own}/nice", timeout=60, **button)
            assert refused.status_code == 403
            assert "may have 0 and above" in refused.json()["error"]["message"]
        with httpx.stream(
            "POST", f"{server.url}/v1/completions",
            json={"prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 8},
            headers={"x-api-key": KEYS["flood"], "x-request-id": "not-yours"}, timeout=60,
        ) as stream:  # fmt: skip
            lines = stream.iter_lines()
            next(lines)
            assert {row["id"] for row in get(server, "flood", "/v1/requests").json()["data"]} == {"not-yours"}
            pid = stream.headers["x-llmos-pid"].partition(",")[0]
            for wanted in ("not-yours", pid):
                for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
                    refused = light.request(method, f"/v1/requests/{wanted}{path}")
                    assert refused.status_code == 404
                    assert refused.json()["error"]["code"] == "request_not_found"
            assert light.post(f"/slots/{pid}?action=erase").status_code == 404
            button = {"headers": {"x-llmos-page": "1"}, "json": {"nice": -5}}
            assert light.post(f"/ui/process/{pid}/nice", **button).status_code == 404
            assert light.get("/v1/requests").json()["data"] == []
            rest = "".join(lines)
            assert rest.count('"finish_reason":"length"') == 8
            assert '"error"' not in rest
