"""The live page of a server with keys, and of one whose gateway goes away and comes back."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llmos.bench.page import gateway_of
from llmos.bench.server import Server, running_server
from syscalls.sync import SyncClient
from tests.system.browser import confirm, open_browser, open_page, row_of, said, wait_live, wait_verdict
from tests.system.leaks import assert_no_leak, count
from tests.system.ports import find_free_port

KEYS = {name: f"sk-llmos-{name}-{'x' * 30}" for name in ("alice", "root")}
LONG = 1900  # tokens
# What no button of hers does.
PRESS = """([pid, key]) => fetch(`/ui/process/${pid}/kill`,
    {method: 'POST', headers: {'x-llmos-page': '1', 'x-api-key': key}}).then(answer => answer.status)"""
MORE_TOKENS = "([cell, tokens]) => Number(document.querySelector(cell).textContent) > tokens"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tenant, an administrator, and a gateway that comes back to the same port."""
    lines = []
    for name, rights in (("alice", ""), ("root", "admin = true")):
        digest = hashlib.sha256(KEYS[name].encode()).hexdigest()
        lines.append(f'[tenant.{name}]\nkeys_sha256 = ["{digest}"]\n{rights}\n')
    path = tmp_path_factory.mktemp("tenants") / "tenants.toml"
    path.write_text("".join(lines))
    options = ("--device", "sim", "--sim-step-ms", "20", "--tenants", str(path))
    with running_server(*options, "--listen", f"127.0.0.1:{find_free_port()}") as running:
        for key in KEYS.values():  # the gateway keeps a session for each key that it has seen
            headers = {"x-api-key": key}
            assert httpx.get(f"{running.url}/v1/models", headers=headers, timeout=60).status_code == 200
        before = count(running)
        yield running
        assert_no_leak(running, before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the module."""
    with open_browser() as found:
        yield found


def enter(page: Any, key: str) -> None:
    """Type a key where the page asks for one."""
    page.get_by_label("This server asks for a key").fill(key)
    page.get_by_role("button", name="Open").click()


def test_a_key_opens_what_its_tenant_may_see_and_a_wrong_one_nothing(server: Server, browser: Any) -> None:
    """A wrong key is told; a tenant sees and stops its own; an administrator everybody's."""
    with (
        SyncClient(server.socket_path, key=KEYS["alice"]) as alice,
        SyncClient(server.socket_path, key=KEYS["root"]) as root,
    ):
        (hers,) = alice.spawn([5, 6, 7], max_tokens=LONG, ignore_eos=True).pids
        (other,) = root.spawn([7, 8, 9], max_tokens=LONG, ignore_eos=True).pids
        with open_page(browser, server.url, may_lose=True) as page:
            enter(page, "sk-llmos-nobody")
            page.locator("#key-error", has_text="key").wait_for()
            assert page.evaluate("document.activeElement.id") == "key"
            assert not page.locator("main").is_visible()
            enter(page, KEYS["alice"])
            wait_live(page)
            assert page.locator("#who").inner_text() == "alice"
            row_of(page, hers).wait_for()
            assert row_of(page, other).count() == 0
            assert page.locator("#count").inner_text() == "1"
            assert str(other) not in page.locator("#log").inner_text()
            page.locator("#n-running", has_text=re.compile("^1$")).wait_for()  # hers
            assert not page.get_by_role("columnheader", name="Tenant").is_visible()
            assert page.evaluate(PRESS, [other, KEYS["alice"]]) == 404
            page.get_by_role("button", name=f"Stop process {hers}", exact=True).click()
            confirm(page, "Stop")
            said(page, f"Process {hers}: stopped.")
            assert alice.stat(hers).state == "STOPPED"
            assert root.stat(other).status is None
            page.reload()  # the key is kept as long as the tab
            wait_live(page)
            page.get_by_role("button", name="Forget key").click()
            page.get_by_label("This server asks for a key").wait_for()
        with open_page(browser, server.url, may_lose=True) as page:
            enter(page, KEYS["root"])
            wait_live(page)
            assert page.locator("#who").inner_text() == "root, sees everybody"
            row_of(page, hers).wait_for()
            row_of(page, other).wait_for()
            page.locator("#n-running", has_text=re.compile("^1$")).wait_for()  # hers is stopped
            assert row_of(page, other).locator(".tenant").inner_text() == "root"
            page.get_by_role("button", name=f"Kill process {hers}", exact=True).click()
            confirm(page, "Kill")
            said(page, f"Process {hers}: killed.")
            assert alice.stat(hers).status.reason == "killed"
        for client, pid in ((alice, hers), (root, other)):
            client.kill(pid)
            client.wait(pid)


def test_the_page_comes_back_with_the_gateway(server: Server, browser: Any) -> None:
    """While it is away the page says so and keeps what it knew; then it goes on with the same processes."""
    with SyncClient(server.socket_path, key=KEYS["root"]) as root:
        (pid,) = root.spawn([5, 6, 7], max_tokens=LONG, ignore_eos=True).pids
        with open_page(browser, server.url, may_lose=True) as page:
            enter(page, KEYS["root"])
            wait_live(page)
            row_of(page, pid).wait_for()
            page.wait_for_function("() => document.querySelector('#rows .speed').textContent !== '–'")
            os.kill(gateway_of(server), signal.SIGKILL)
            page.locator("#status.lost").wait_for()
            assert row_of(page, pid).is_visible()
            wait_live(page)
            tokens = int(row_of(page, pid).locator(".tokens").inner_text())
            page.wait_for_function(MORE_TOKENS, arg=[f"#row-{pid} .tokens", tokens])
            page.locator("#log", has_text="restarting").wait_for()
            row_of(page, pid).click()
            wait_verdict(page.get_by_role("dialog"))
        root.kill(pid)
        root.wait(pid)
    for key in KEYS.values():  # as at the beginning: a session for each key
        headers = {"x-api-key": key}
        assert httpx.get(f"{server.url}/v1/models", headers=headers, timeout=60).status_code == 200
