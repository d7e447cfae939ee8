"""Two keys on a real server, by the official client and the socket: one's limits do not touch the other."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from llmos.bench.server import Server, running_server
from syscalls.errno import Errno, SyscallError
from syscalls.sync import SyncClient
from tests.system.leaks import assert_no_leak, count

KEYS = {name: f"sk-llmos-{name}-{'x' * 30}" for name in ("alice", "bob", "dave")}
PROMPT = [300 + i % 200 for i in range(400)]


@pytest.fixture(scope="module")
def tenants_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's tenants file is."""
    return tmp_path_factory.mktemp("tenants") / "tenants.toml"


@pytest.fixture(scope="module")
def server(tenants_path: Path) -> Iterator[Server]:
    """A server with three tenants: one is limited; one has a budget, and a key in the environment."""
    lines = ["[tenant.dave]\ntoken_budget = 1000\n"]
    for name, limits in (
        ("alice", "requests_per_minute = 4\ntokens_per_minute = 2000"),
        ("bob", "weight = 2"),
    ):
        digest = hashlib.sha256(KEYS[name].encode()).hexdigest()
        lines.append(f'[tenant.{name}]\nkeys_sha256 = ["{digest}"]\n{limits}\n')
    path = tenants_path
    path.write_text("".join(lines))
    options = ("--device", "cpu", "--threads", "1", "--pool-mib", "256", "--tenants", str(path))
    options += ("--budget-file", str(path.with_name("budgets.json")))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("LLMOS_KEYS", f"dave={KEYS['dave']}")
        running = stack.enter_context(running_server(*options))
        for key in KEYS.values():  # the gateway keeps a session for each key that it has seen
            headers = {"x-api-key": key}
            assert httpx.get(f"{running.url}/v1/models", headers=headers, timeout=60).status_code == 200
        before = count(running)
        yield running
        assert_no_leak(running, before)  # the last test gave one session's place to another


def ask(server: Server, name: str, **fields: object) -> openai.types.Completion:
    """One completion with a tenant's key."""
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEYS[name], max_retries=0) as client:
        return client.completions.create(
            model="llmos-base", prompt=PROMPT, max_tokens=4, temperature=0, **fields
        )


def ask_on_and_on(server: Server, name: str) -> None:
    """Until a limit is met: a rate of four a minute is, unless each answer takes a quarter of one."""
    for _ in range(20):
        ask(server, name)


def test_nobody_gets_in_without_a_key(server: Server) -> None:
    """401 at the door and EPERM at the socket; health is public."""
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    for key in ("nonsense", "x" * 5000):
        with OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        with pytest.raises(SyscallError, match="EPERM"):
            SyncClient(server.socket_path, key=key)
    assert stat.S_IMODE(Path(server.socket_path).stat().st_mode) == 0o600


def test_tenants_share_nothing_and_limits_are_their_own(server: Server) -> None:
    """Equal prompts are found in the own cache only; one tenant runs into its limits, not the other."""
    for name in ("alice", "bob"):
        cached = [ask(server, name).usage.prompt_tokens_details.cached_tokens for _ in range(2)]
        assert cached[0] == 0
        assert cached[1] > 0
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEYS["alice"], max_retries=0) as client:
        raw = client.completions.with_raw_response.create(model="llmos-base", prompt=PROMPT, max_tokens=4)
        assert raw.headers["x-ratelimit-limit-requests"] == "4"
        assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 2000
    with pytest.raises(openai.RateLimitError) as caught:
        ask_on_and_on(server, "alice")
    assert int(caught.value.response.headers["retry-after"]) >= 1
    for _ in range(6):
        answer = ask(server, "bob")
    assert answer.usage.completion_tokens == 4
    with SyncClient(server.socket_path, key=KEYS["alice"]) as alice:
        with pytest.raises(SyscallError) as refused:
            alice.spawn(PROMPT * 5, max_tokens=1)
        assert refused.value.errno is Errno.EDQUOT
    with SyncClient(server.socket_path) as administrator:
        found = {tenant.name: tenant for tenant in administrator.tenants(everyone=True)}
        assert found["alice"].num_refused >= 2
        assert (found["bob"].num_refused, found["bob"].usage.weight) == (0, 2.0)
        assert found["alice"].share + found["bob"].share == pytest.approx(1)


def test_a_budget_is_spent_once(server: Server) -> None:
    """Two requests fit, a third is refused for good; no child of the kernel has inherited the key."""
    for _ in range(2):
        ask(server, "dave")
    with pytest.raises(openai.RateLimitError) as refused:
        ask(server, "dave")
    assert refused.value.code == refused.value.type == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    with SyncClient(server.socket_path) as administrator:
        found = {tenant.name: tenant for tenant in administrator.tenants(everyone=True)}
        assert found["dave"].num_spent_tokens == 2 * (len(PROMPT) + 4)
        (device,) = administrator.devices()
    environment = Path(f"/proc/{device.driver_pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"LLMOS_KEYS" not in environment


def test_a_tenant_sees_only_its_own(server: Server) -> None:
    """Through the socket with a key, which gives no administrator's rights even to one."""
    with SyncClient(server.socket_path, key=KEYS["bob"]) as bob:
        (pid,) = bob.spawn([5, 6, 7], max_tokens=2000, ignore_eos=True).pids
        with SyncClient(server.socket_path, key=KEYS["alice"]) as alice:
            assert alice.ps() == ()
            for call in (alice.kill, alice.read, alice.stat):
                with pytest.raises(SyscallError, match="EPERM"):
                    call(pid)
        bob.kill(pid)
        bob.wait(pid)


def test_a_signal_has_the_file_read_again(server: Server, tenants_path: Path) -> None:
    """A wrong file changes nothing; then bob's key opens no door, carol's does, alice's still does."""
    written = tenants_path.read_text()
    alice, bob, carol = KEYS["alice"], KEYS["bob"], "sk-llmos-carol"
    with SyncClient(server.socket_path) as administrator:

        def hang_up(text: str) -> str:
            """Write the file, send the signal, and return the event that says what came of it."""
            since = administrator.events()[-1].sequence + 1
            tenants_path.write_text(text)
            os.kill(server.os_pid, signal.SIGHUP)
            while True:
                for event in administrator.events(since, follow=True):
                    if event.subsystem == "tenants":
                        return event.text
                    since = event.sequence + 1

        assert "unknown field `limit`" in hang_up("[default]\nlimit = 3\n" + written)
        assert look(server, bob) == 200
        digest = hashlib.sha256(carol.encode()).hexdigest()
        text = hang_up(written.partition("[tenant.bob]")[0] + f'[tenant.carol]\nkeys_sha256 = ["{digest}"]\n')
        assert text == "tenants read again: added carol; removed bob; 1 sessions ended"
    assert look(server, carol) == look(server, alice) == 200
    deadline = time.monotonic() + 60
    while look(server, bob) != 401 and time.monotonic() < deadline:  # until the gateway sees its session end
        time.sleep(0.01)
    assert look(server, bob) == 401


def look(server: Server, key: str) -> int:
    """What a key's request for the models is answered with."""
    return httpx.get(f"{server.url}/v1/models", headers={"x-api-key": key}, timeout=30).status_code
