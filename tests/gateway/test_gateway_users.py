"""`user` of requests, where the operator lets it count: in the kernel, and in bounded metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from shell.gateway.users import UserMetrics, hide_others
from syscalls.embedding import Embed
from syscalls.process import Spawn
from tests.gateway.harness import Gateway, KernelThread, running_gateway
from tests.gateway.test_gateway_errors import CHAT, check_error, hello


@pytest.fixture
def counting(kernel: KernelThread, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway with counters for two users."""
    with running_gateway(kernel, tmp_path / "counting", "--max-users", "2") as gateway:
        yield gateway


def users_of(kernel: KernelThread) -> list[str]:
    """Those that processes were spawned for."""
    return [call.user for call in kernel.kernel.calls if isinstance(call, Spawn | Embed)]


def counters(gateway: Gateway) -> dict[str, float]:
    """The counters of users, by what stands before the value."""
    lines = gateway.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("llmos_gateway_user_") and "_created" not in line]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in found}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, hello()),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/responses", {"input": "hello", "store": False}),
        ("/v1/embeddings", {"input": "hello"}),
    ],
)
def test_the_kernel_is_told(counting: Gateway, kernel: KernelThread, path: str, body: dict[str, Any]) -> None:
    """By every endpoint that makes processes; nobody where a body names nobody."""
    for named, expected in (({"user": "ann"}, "ann"), ({"user": None}, ""), ({}, "")):
        kernel.kernel.calls.clear()
        assert counting.post(path, {**body, **named}).status_code == 200
        assert users_of(kernel) == [expected]
    check_error(counting.post(path, {**body, "user": 7}), 400, "invalid_type", "user")
    check_error(counting.post(path, {**body, "user": "x" * 257}), 400, "invalid_value", "user")


def test_so_many_have_counters(counting: Gateway) -> None:
    """The first two by name, all others together, requests without a user nowhere."""
    for user, times in (("ann", 2), ("bob", 1), ("cid", 1), ("dan", 2), ("ann", 1)):
        for _ in range(times):
            assert counting.post("/v1/completions", {"prompt": "abc", "user": user}).status_code == 200
    assert counting.post("/v1/completions", {"prompt": "abc"}).status_code == 200
    assert counting.post("/v1/embeddings", {"input": "abc", "user": "bob"}).status_code == 200
    found = counters(counting)
    requests = {name: value for name, value in found.items() if "user_requests" in name}
    assert requests == {
        'llmos_gateway_user_requests_total{tenant="tester",user="ann"}': 3.0,
        'llmos_gateway_user_requests_total{tenant="tester",user="bob"}': 2.0,
        'llmos_gateway_user_requests_total{tenant="other",user="other"}': 3.0,
    }
    assert found['llmos_gateway_user_prompt_tokens_total{tenant="tester",user="ann"}'] == 9.0
    assert found['llmos_gateway_user_completion_tokens_total{tenant="tester",user="ann"}'] > 0


def test_tokens_of_responses_are_counted(own_kernel: KernelThread, tmp_path: Path) -> None:
    """Stored, whose processes stay, or not: for their user and in all."""
    with running_gateway(own_kernel, tmp_path / "g", "--max-users", "2") as gateway:
        for fields in ({"store": False}, {"store": True}, {"stream": True}):
            body = {"input": "abc", "user": "ann", **fields}
            assert gateway.post("/v1/responses", body).status_code == 200
        text, found = gateway.get("/metrics").text, counters(gateway)
    for kind in ("prompt", "completion"):
        (total,) = re.findall(rf"^llmos_gateway_{kind}_tokens_total (\S+)$", text, re.MULTILINE)
        label = '{tenant="tester",user="ann"}'
        assert found[f"llmos_gateway_user_{kind}_tokens_total{label}"] == float(total) > 3
    assert found['llmos_gateway_user_requests_total{tenant="tester",user="ann"}'] == 3.0


def test_a_tenant_sees_its_own(tmp_path: Path) -> None:
    """The page of metrics names no user of another tenant, and asks the kernel as the tenant."""
    with KernelThread(tmp_path / "kernel", {"key-of-alice": "alice", "key-of-bob": "bob"}) as kernel:
        with running_gateway(kernel, tmp_path / "g", "--max-users", "3", wait=False) as gateway:
            kernel.wait_until(lambda: gateway.get("/health").status_code == 200)
            for tenant in ("alice", "bob"):
                headers = {"authorization": f"Bearer key-of-{tenant}"}
                body = {"prompt": "abc", "user": f"one of {tenant}"}
                assert gateway.post("/v1/completions", body, headers=headers).status_code == 200
            page = gateway.get("/metrics", headers={"authorization": "Bearer key-of-alice"}).text
            assert 'llmos_gateway_user_requests_total{tenant="alice",user="one of alice"} 1.0' in page
            assert "bob" not in page


NAMES = st.sampled_from(['"', "a", "\\", "\r", '{tenant="a",', "a\nllmos_gateway_user_"]) | st.text(
    min_size=1
)


@given(st.lists(st.tuples(NAMES, NAMES), max_size=5), NAMES)
def test_whatever_they_are_called(requests: list[tuple[str, str]], tenant: str) -> None:
    """The page that is left is the one of a server that only this tenant uses."""
    pages = []
    for served in (requests, [(name, user) for name, user in requests if name == tenant]):
        registry = CollectorRegistry()
        metrics = UserMetrics(registry, max_users=10)
        for name, user in served:
            metrics.observe(name, user, 3, 5)
        lines = generate_latest(registry).split(b"\n")
        pages.append(b"\n".join(line for line in lines if b"_created" not in line))
    assert hide_others(pages[0], tenant) == pages[1]


def test_without_the_option_it_has_no_effect(gateway: Gateway, kernel: KernelThread) -> None:
    """Anything is accepted then, and nothing is counted."""
    for user in ("ann", 7, ["x"]):
        assert gateway.post(CHAT, hello(user=user)).status_code == 200
    assert set(users_of(kernel)) == {""}
    assert counters(gateway) == {}
