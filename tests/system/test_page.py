"""The live page in a real headless Chromium, on a real server with a simulated device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from llmos.bench.server import Server
from syscalls.sync import SyncClient
from tests.system.browser import confirm, open_browser, open_page, row_of, said, wait_live, wait_verdict
from tests.system.leaks import counted_server

GUARD = {"x-llmos-page": "1"}
SERVER = (
    "--device", "sim", "--sim-step-ms", "40", "--pool-mib", "1", "--max-running", "8", "--swap-mib", "64",
)  # fmt: skip
SCHEMES = ("light", "dark")
# By place on the screen: a line is written over when another process comes to stand there.
ROWS = "[...document.querySelectorAll('#rows .row')].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
ROWS_ARE = f"wanted => {ROWS}.map(row => row.id).join() === wanted.join()"
FIRST_ROW_IS = f"wanted => wanted.includes({ROWS}[0].id)"
ROWS_STAND_APART = f"""count => {{ const boxes = {ROWS}.map(row => row.getBoundingClientRect());
    return boxes.length === count
        && boxes.every((box, i) => !i || Math.abs(boxes[i - 1].bottom - box.top) < 1); }}"""
LONG = 1000  # tokens: more than are made while a test watches


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


def test_the_chats_own_process_is_preempted_under_its_text(
    server: Server, browser: Any, client: SyncClient
) -> None:
    """Queued, decode, preempted, ended: in this order, and the kernel tells the same of the process."""
    with open_page(browser, server.url) as page:
        wait_live(page)
        life = page.locator(".life").last
        for _ in range(8):  # the simulated model ends one answer in a hundred tokens by itself
            say(page, "Hello")
            life.locator(".decode, .ended").first.wait_for()
            pid = int(life.locator("li").first.inner_text().removeprefix("pid "))
            with processes(client, 10, nice=-5):
                life.locator(".preempted, .ended").first.wait_for()
                if life.locator(".ended").count():
                    continue
                assert client.stat(pid).usage.num_preemptions >= 1
                # it keeps its memory while nobody wants that, and waits for a place only
                waits = page.locator(f"#row-{pid}").locator(".phase.swapped, .phase.memory, .phase.queued")
                waits.wait_for()
                assert "KV of one process" in page.locator("#devices canvas").get_attribute("aria-label")
                page.get_by_role("button", name="Stop", exact=True).click()  # by the reader
                life.get_by_text("ended: stopped by you").wait_for()
                break
        notes = life.locator("li").all_inner_texts()
        assert notes[0] == f"pid {pid}"
        assert notes[1:3] == ["queued", "decode"] or notes[1:4] == ["queued", "prefill", "decode"]
        assert notes.index("decode") < notes.index("preempted") < len(notes) - 1
        assert page.locator(".answer").last.inner_text() != ""


def test_a_process_is_opened_stopped_reniced_and_killed_by_keyboard_alone(
    server: Server, browser: Any, client: SyncClient
) -> None:
    """What the kernel says afterwards is what was asked, after a yes; the grid keeps the focus."""
    with processes(client, 6) as pids, open_page(browser, server.url) as page:
        wait_live(page)
        page.wait_for_function("() => document.querySelectorAll('#rows .phase.decode').length === 6")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the processes"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "grid"
        page.keyboard.press("End")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowDown")
        victim = pids[5]
        assert page.locator("#grid").get_attribute("aria-activedescendant") == f"row-{victim}"

        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name=f"Process {victim}")
        wait_verdict(dialog)
        assert "decode" in dialog.locator("#p-bar").get_attribute("aria-label")
        page.keyboard.press("Escape")

        page.keyboard.press("k")
        page.get_by_role("dialog", name=f"Kill process {victim}?").wait_for()
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "grid"
        assert client.stat(victim).status is None

        page.keyboard.press("s")
        page.keyboard.press("Enter")
        said(page, f"Process {victim}: stopped.")
        assert client.stat(victim).state == "STOPPED"
        row_of(page, victim).locator(".phase", has_text="stopped").wait_for()
        page.keyboard.press("s")
        said(page, f"Process {victim}: goes on.")
        assert client.stat(victim).state != "STOPPED"

        page.keyboard.press("n")
        page.keyboard.type("7")
        page.keyboard.press("Enter")
        said(page, f"Process {victim}: nice 7.")
        assert client.stat(victim).nice == 7
        row_of(page, victim).locator(".nice", has_text="7").wait_for()

        page.keyboard.press("k")
        page.keyboard.press("Enter")
        said(page, f"Process {victim}: killed.")
        assert client.stat(victim).status.reason == "killed"
        # The row goes in the end, and the row that is active then is another; the focus has not moved.
        row_of(page, victim).wait_for(state="detached")
        assert page.evaluate("document.activeElement.id") == "grid"
        assert page.locator("#grid").get_attribute("aria-activedescendant") == f"row-{pids[4]}"


def test_buttons_ask_first_and_a_filter_narrows(server: Server, browser: Any, client: SyncClient) -> None:
    """By pointer: a row's own buttons, with a question before each; a filter by any word of a row."""
    with processes(client, 4, label="batch") as pids, open_page(browser, server.url) as page:
        wait_live(page)
        row_of(page, pids[3]).wait_for()
        page.locator("#filter").fill("batch-2")
        row_of(page, pids[3]).wait_for(state="detached")
        assert page.locator("#rows .row").count() == 1
        assert page.locator("#count").inner_text() == "1 of 4"
        page.locator("#filter").fill("no such")
        page.get_by_text("No process is like that.").wait_for()
        page.locator("#filter").fill("")
        page.get_by_role("button", name=f"Stop process {pids[1]}", exact=True).click()
        confirm(page, "Stop")
        said(page, f"Process {pids[1]}: stopped.")
        page.get_by_role("button", name=f"Let process {pids[1]} go on", exact=True).click()
        said(page, f"Process {pids[1]}: goes on.")
        page.get_by_role("button", name=f"Kill process {pids[0]}", exact=True).click()
        confirm(page, "Cancel")
        assert client.stat(pids[0]).status is None
        page.get_by_role("button", name=f"Kill process {pids[0]}", exact=True).click()
        confirm(page, "Kill")
        said(page, f"Process {pids[0]}: killed.")
        assert client.stat(pids[0]).status.reason == "killed"


def test_the_order_is_the_viewers(server: Server, browser: Any, client: SyncClient) -> None:
    """By nice level, newest, most tokens: of the rows that there are; the rest keeps the order of pids."""
    with processes(client, 3) as old, processes(client, 2, nice=-5, prompt=range(5, 105)) as urgent:
        with open_page(browser, server.url) as page:
            wait_live(page)
            page.wait_for_function("() => document.querySelectorAll('#rows .phase.decode').length === 5")
            orders = {
                "By state": [*old, *urgent],
                "Newest first": [*reversed(urgent), *reversed(old)],
                "By nice level": [*urgent, *old],
            }
            for name, expected in orders.items():
                page.get_by_label("Order of processes").select_option(name)
                wanted = [f"row-{pid}" for pid in expected]
                page.wait_for_function(ROWS_ARE, arg=wanted)
            page.get_by_label("Order of processes").select_option("Most tokens first")
            page.wait_for_function(FIRST_ROW_IS, arg=[f"row-{pid}" for pid in urgent])


def test_labels_are_text_and_turn_nothing_around(server: Server, browser: Any, client: SyncClient) -> None:
    """Markup is shown, not run; a mark that turns the direction of writing is shown as one that is none."""
    label = "<img src=x onerror=alert(1)>\u202egnp"
    (pid,) = client.spawn([5, 6, 7], max_tokens=LONG, ignore_eos=True, label=label).pids
    with open_page(browser, server.url) as page:
        wait_live(page)
        row_of(page, pid).wait_for()
        assert row_of(page, pid).locator(".label").text_content() == label.replace("\u202e", "\ufffd")
        row_of(page, pid).click()
        page.get_by_role("dialog").get_by_text("onerror=alert(1)>\ufffdgnp").wait_for()
        page.keyboard.press("k")
        page.locator("#c-effect", has_text="onerror=alert(1)>\ufffdgnp").wait_for()
        assert page.locator("img").count() == 0
    client.kill(pid)
    client.wait(pid)


def test_only_rows_in_sight_exist_and_the_active_one_is_scrolled_to(
    server: Server, browser: Any, client: SyncClient
) -> None:
    """Of a hundred and fifty processes the grid has the lines that fit; End shows the last."""
    with processes(client, 150) as pids, open_page(browser, server.url) as page:
        wait_live(page)
        page.locator("#count", has_text="150").wait_for()
        assert page.locator("#rows .row").count() < 40
        assert page.locator("#grid").get_attribute("aria-rowcount") == "151"
        page.locator("#grid").focus()
        page.keyboard.press("End")
        active = page.locator("#rows .row[aria-selected=true]")
        active.wait_for()
        assert active.get_attribute("aria-rowindex") == "151"
        assert active.locator(".pid").inner_text() in {str(pid) for pid in pids}
        box, grid = active.bounding_box(), page.locator("#grid").bounding_box()
        assert grid["y"] <= box["y"]
        assert box["y"] + box["height"] <= grid["y"] + grid["height"] + 2


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


def test_files_are_served_by_name_and_buttons_are_guarded(server: Server) -> None:
    """No path leads out, a strict policy comes along, and wrong presses are refused by name."""
    with httpx.Client(base_url=server.url, timeout=30) as web:
        answer = web.get("/ui")
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "://" not in answer.text
        assert web.get("/ui/main.js").headers["content-type"] == "text/javascript"
        for path in ("/ui/..%2fpage.py", "/ui/page.py", "/ui/nothing.js"):
            assert web.get(path).status_code == 404
        assert web.get("/ui/process/999999").status_code == 404
        assert web.get("/ui/process/x").status_code == 400
        assert web.post("/ui/process/1/kill").status_code == 403
        assert web.post("/ui/process/999999/kill", headers=GUARD).status_code == 404
        assert web.post("/ui/process/1/dance", headers=GUARD).status_code == 404
        assert web.post("/ui/process/x/kill", headers=GUARD).status_code == 400
        assert web.post("/ui/process/1/nice", headers=GUARD, json={"nice": 20}).status_code == 400
