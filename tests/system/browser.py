"""A real headless Chromium for the tests of the live page; whatever it complains of fails the test."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from syscalls.sync import SyncClient

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MILLISECONDS = 30_000
LONG = 1000  # tokens: more than are made while a test watches
# By place on the screen: a line is written over when another process comes to stand there.
ROWS = "[...document.querySelectorAll('#rows .row')].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
VERDICT = re.compile("running normally|slow to start|on the way")
# What the policy forbids is told as an event; in a console it is only sometimes an error.
WATCH_POLICY = (
    "addEventListener('securitypolicyviolation', e => console.error(`policy: ${e.violatedDirective}`))"
)
EXPECTED_LOSSES = ("net::ERR_", "the server responded with a status of")  # of a server that goes away


@contextmanager
def open_browser() -> Iterator[Any]:
    """A browser; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: the [browser] extra")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, url: str, *, may_lose: bool = False, **options: Any) -> Iterator[Any]:
    """A tab without history or storage; at the end it must have complained of nothing.

    Args:
        may_lose: the server goes away, or refuses: what the browser says of that is no complaint.
        options: of the context, like viewport or color_scheme.
    """
    complaints: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    page.add_init_script(WATCH_POLICY)
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{url}/ui")
    yield page
    context.close()
    if may_lose:
        complaints = [each for each in complaints if not any(part in each for part in EXPECTED_LOSSES)]
    assert complaints == []


def wait_live(page: Any) -> None:
    """Wait until the first look is there and drawn, which the next frame does."""
    page.get_by_text("Live", exact=True).wait_for()
    page.locator("#who:not(:empty)").wait_for()


def row_of(page: Any, pid: int) -> Any:
    """The row of a process in the grid."""
    return page.locator(f"#row-{pid}")


def confirm(page: Any, word: str) -> None:
    """Say yes to the question that is asked."""
    page.get_by_role("dialog").get_by_role("button", name=word, exact=True).click()


def said(page: Any, text: str) -> None:
    """Wait for what the page says of an action."""
    page.locator("#said", has_text=text).wait_for()


def wait_verdict(dialog: Any) -> None:
    """Wait for the kernel's own verdict, whichever: on a busy machine a start is slow, and that is said."""
    dialog.locator("#p-verdict", has_text=VERDICT).wait_for()


@contextmanager
def processes(
    client: SyncClient, count: int, *, nice: int = 0, prompt: Sequence[int] = range(5, 25), label: str = ""
) -> Iterator[list[int]]:
    """Processes that go on and on, each with a prompt of its own."""
    pids = [
        client.spawn(
            [300 + i, *prompt], max_tokens=LONG, ignore_eos=True, nice=nice, label=label and f"{label}-{i}"
        ).pids[0]
        for i in range(count)
    ]
    yield pids
    for pid in pids:
        client.kill(pid)
        client.wait(pid)


def say(page: Any, text: str, limit: int = LONG) -> None:
    """Send a message in the chat."""
    page.locator("#limit").fill(str(limit))
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")
