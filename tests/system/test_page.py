"""The live page in a real headless Chromium, on a real server with a simulated device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llmos.bench.server import Server
from syscalls.sync import SyncClient
from tests.system.browser import (
    LONG,
    ROWS,
    confirm,
    open_browser,
    open_page,
    processes,
    row_of,
    said,
    say,
    wait_live,
    wait_verdict,
)
from tests.system.leaks import counted_server

GUARD = {"x-llmos-page": "1"}
SERVER = (
    "--device", "sim", "--sim-step-ms", "40", "--pool-mib", "1", "--max-running", "8", "--swap-mib", "64",
)  # fmt: skip
ROWS_ARE = f"wanted => {ROWS}.map(row => row.id).join() === wanted.join()"
FIRST_ROW_IS = f"wanted => wanted.includes({ROWS}[0].id)"


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
