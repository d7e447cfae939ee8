"""The live page in a real headless Chromium, on a real server with little memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llmos.bench.server import Server, running_server
from syscalls.sync import SyncClient
from tests.system.leaks import assert_no_leak, count

GUARD = {"x-llmos-page": "1"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MILLISECONDS = 30_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server on which a few long generations do not fit together."""
    options = [
        "--device",
        "cpu",
        "--threads",
        "1",
        "--pool-mib",
        "8",
        "--frame-kib",
        "64",
        "--max-running",
        "8",
        "--swap-mib",
        "64",
    ]
    with running_server(*options) as running:
        before = count(running)
        yield running
        assert_no_leak(running, before)


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    """A page in a fresh browser; at the end it must have complained of nothing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: the [browser] extra")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium")
    complaints: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page()
        opened.set_default_timeout(PATIENCE_MILLISECONDS)
        opened.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(f"{server.url}/ui")
        opened.get_by_text("Live", exact=True).wait_for()
        yield opened
        browser.close()
    assert complaints == []


def test_chat_is_preempted_before_the_viewers_eyes_and_a_process_is_killed(server: Server, page: Any) -> None:
    """The chat's process lives under its text; with others in the way one is preempted; Kill ends one."""
    with SyncClient(server.socket_path) as client:
        pids = [
            client.spawn([300 + i, *range(5, 40)], max_tokens=1900, ignore_eos=True).pids[0] for i in range(8)
        ]
        page.locator("#limit").fill("8")
        page.locator("#prompt").fill("Hello")
        page.locator("#prompt").press("Enter")
        page.locator("td.state.swapped, td.state.memory").first.wait_for()
        assert any(process.usage.num_preemptions for process in client.ps())
        assert page.locator("#rows tr").count() >= 2
        victim = client.ps()[0].pid if client.stat(pids[-1]).state == "ZOMBIE" else pids[-1]
        kill = page.get_by_role("button", name=f"Kill process {victim}", exact=True)
        kill.focus()
        kill.press("Enter")
        page.get_by_text(f"Process {victim}: killed.").wait_for()
        assert client.stat(victim).status.reason == "killed"
        page.locator(".life li", has_text="ended").first.wait_for()
        assert page.locator(".life li").first.inner_text() == "queued"
        assert page.locator("#devices canvas").get_attribute("aria-label").startswith("KV of one process")
        for pid in pids:
            client.kill(pid)
            client.wait(pid)


def test_buttons_stop_and_renice(server: Server, page: Any) -> None:
    """What the kernel says afterwards is what the button promised."""
    with SyncClient(server.socket_path) as client:
        (pid,) = client.spawn([5, 6, 7], max_tokens=1900, ignore_eos=True, interactive=True).pids
        page.get_by_role("button", name=f"Stop process {pid}", exact=True).click()
        page.get_by_text(f"Process {pid}: stopped.").wait_for()
        assert client.stat(pid).state == "STOPPED"
        page.get_by_role("button", name=f"Raise the nice level of process {pid}").click()
        page.get_by_text(f"Process {pid}: nice 1.").wait_for()
        assert client.stat(pid).nice == 1
        page.get_by_role("button", name=f"Go on process {pid}", exact=True).click()
        page.get_by_text(f"Process {pid}: goes on.").wait_for()
        client.kill(pid)
        client.wait(pid)


def test_files_are_served_by_name_and_buttons_are_guarded(server: Server) -> None:
    """No path leads out, a strict policy comes along, and wrong presses are refused by name."""
    with httpx.Client(base_url=server.url, timeout=30) as web:
        answer = web.get("/ui")
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "://" not in answer.text
        assert web.get("/ui/main.js").headers["content-type"] == "text/javascript"
        for path in ("/ui/..%2fpage.py", "/ui/page.py", "/ui/nothing.js"):
            assert web.get(path).status_code == 404
        assert web.post("/ui/process/1/kill").status_code == 403
        assert web.post("/ui/process/999999/kill", headers=GUARD).status_code == 404
        assert web.post("/ui/process/1/dance", headers=GUARD).status_code == 404
        assert web.post("/ui/process/x/kill", headers=GUARD).status_code == 400
        assert web.post("/ui/process/1/nice", headers=GUARD, json={"nice": 20}).status_code == 400
