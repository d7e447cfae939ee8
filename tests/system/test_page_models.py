"""The live page while models and devices come, go and sleep."""

from __future__ import annotations

from llmos.bench.server import running_server
from syscalls.sync import SyncClient
from tests.system.browser import open_browser, open_page, say, wait_live


def test_the_chat_knows_the_models_that_come_and_go() -> None:
    """While there are several it asks which, and sends that; a device that sleeps is said to."""
    with (
        open_browser() as browser,
        running_server("--device", "sim", "--sim-step-ms", "40") as server,
        SyncClient(server.socket_path) as client,
        open_page(browser, server.url) as page,
    ):
        wait_live(page)
        choice = page.get_by_label("Model", exact=True)
        assert not choice.is_visible()
        client.load_model("builtin", "second")
        choice.select_option("second")
        say(page, "Hello", 2)
        page.locator(".life .ended", has_text="length").wait_for()
        client.sleep(1)
        page.locator("#devices p.notable", has_text="sim:0 · sleeping").wait_for()
        client.wake()
        page.locator("#devices p.notable").first.wait_for(state="detached")
        client.unload_model("second")
        choice.wait_for(state="hidden")
        say(page, "Hello", 2)
        page.wait_for_function("() => document.querySelectorAll('.life .ended').length === 2")
        assert page.locator(".life .ended").all_inner_texts() == ["ended: length"] * 2
