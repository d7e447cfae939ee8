"""How the live page looks in a real headless Chromium: names, contrast, and what fits on which screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmos.bench.server import Server
from syscalls.sync import SyncClient
from tests.system.browser import (
    ROWS,
    confirm,
    open_browser,
    open_page,
    processes,
    row_of,
    say,
    wait_live,
    wait_verdict,
)
from tests.system.leaks import counted_server

SERVER = (
    "--device", "sim", "--sim-step-ms", "40", "--pool-mib", "1", "--max-running", "8", "--swap-mib", "64",
)  # fmt: skip
SCHEMES = ("light", "dark")
ROWS_STAND_APART = f"""count => {{ const boxes = {ROWS}.map(row => row.getBoundingClientRect());
    return boxes.length === count
        && boxes.every((box, i) => !i || Math.abs(boxes[i - 1].bottom - box.top) < 1); }}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server in which eight processes run at a time, twenty-five tokens a second each."""
    with counted_server(*SERVER) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the module."""
    with open_browser() as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[SyncClient]:
    """A session; its processes end with it."""
    with SyncClient(server.socket_path) as found:
        yield found


def unnamed_nodes(page: Any) -> list[str]:
    """Nodes of the accessibility tree that one may act on or must be told about, and that have no name."""
    devtools = page.context.new_cdp_session(page)
    found = []
    for node in devtools.send("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value", "")
        focusable = any(
            each["name"] == "focusable" and each["value"]["value"] for each in node.get("properties", [])
        )
        needs_name = focusable or role in ("button", "textbox", "img", "grid", "row", "gridcell", "dialog")
        if role in ("RootWebArea", "gridcell", "row") or node.get("ignored"):
            continue  # cells may be empty; a row is named by its cells
        if needs_name and not node.get("name", {}).get("value"):
            found.append(f"{role} {node.get('backendDOMNodeId')}")
    return found


# For each text in sight: the least ratio of its colour to what lies behind, as WCAG defines it.
CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c[3] === undefined || c[3] === 1) return c; } return [255, 255, 255]; };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility()) continue;
    if (e.closest('script, :disabled, .hidden')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 30)}`);
  }
  return bad;
}"""
# What has more in it than fits sideways, of what is laid out to fit.
OVERFLOWS = """() => [...document.querySelectorAll('html, section, #grid, #rows .row, #turns, dialog[open]')]
  .filter(e => e.scrollWidth > e.clientWidth).map(e => e.id || e.className || e.tagName)"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_everything_has_a_name_and_can_be_read(
    server: Server, browser: Any, client: SyncClient, scheme: str
) -> None:
    """By the accessibility tree and by contrast, with the dialogs open too, in both colour schemes."""
    with processes(client, 3) as pids, open_page(browser, server.url, color_scheme=scheme) as page:
        wait_live(page)
        say(page, "Hello", 2)
        page.locator(".life .ended").wait_for()
        row_of(page, pids[0]).wait_for()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 26)"
        assert dark == (scheme == "dark")
        page.locator("#grid").focus()
        for key in ("Home", "Enter", "k"):
            page.keyboard.press(key)
            assert unnamed_nodes(page) == []
            assert page.evaluate(CONTRAST) == []
        page.locator("#process .legend").wait_for()
        tree = page.locator("#grid").aria_snapshot()
        assert "columnheader" in tree
        assert "gridcell" in tree


def test_nothing_overflows_at_any_width(server: Server, browser: Any, client: SyncClient) -> None:
    """From the least phone to a large screen: long names are cut or wrapped, and nothing scrolls sideways."""
    with processes(client, 2, label="a-name-without-a-blank-" * 5) as pids:
        with open_page(browser, server.url) as page:
            wait_live(page)
            row_of(page, pids[0]).wait_for()
            say(page, "unbreakable" * 12, 2)
            page.locator(".life .ended").wait_for()
            for width in (320, 360, 390, 600, 761, 768, 1000, 1181, 1280, 1291, 1366, 1501, 1920, 2560):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate(OVERFLOWS) == [], width


def test_rows_stand_below_each_other_when_the_window_has_become_narrow(
    server: Server, browser: Any, client: SyncClient
) -> None:
    """On a phone that is turned, rows become higher: none lies upon another, to and fro."""
    with processes(client, 4) as pids, open_page(browser, server.url) as page:
        wait_live(page)
        for width in (1280, 400, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_function(ROWS_STAND_APART, arg=len(pids))


@pytest.mark.parametrize("width", [360, 768])
def test_a_tap_opens_and_kills(server: Server, browser: Any, client: SyncClient, width: int) -> None:
    """By touch alone, and what opens has room on the screen."""
    options = {"viewport": {"width": width, "height": 800}, "has_touch": True}
    with processes(client, 2, label="a-name-without-a-blank-" * 5) as pids:
        with open_page(browser, server.url, **options) as page:
            wait_live(page)
            row_of(page, pids[0]).locator(".phase").tap()
            dialog = page.get_by_role("dialog", name=f"Process {pids[0]}")
            wait_verdict(dialog)
            box = dialog.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= 800
            assert page.evaluate(OVERFLOWS) == []
            dialog.get_by_role("button", name="Kill …").tap()
            confirm(page, "Kill")
            dialog.get_by_text("ended", exact=True).wait_for()
            assert client.stat(pids[0]).status.reason == "killed"
