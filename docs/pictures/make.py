"""Makes the pictures of the live page: a server with little memory, some load, a headless Chromium.

pip install -e '.[browser]' && python docs/pictures/make.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from llmos.bench.server import running_server
from syscalls.sync import SyncClient

FOLDER = Path(__file__).parent
SERVER = "--device cpu --threads 1 --pool-mib 8 --frame-kib 64 --max-running 8 --swap-mib 64"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
NUM_PROCESSES = 40  # more than end while the page is watched
WATCH_MILLISECONDS = 6000
VIEWS = {
    "page-light.png": {"viewport": {"width": 1360, "height": 1010}, "color_scheme": "light"},
    "page-dark.png": {"viewport": {"width": 1360, "height": 1010}, "color_scheme": "dark"},
    "page-phone.png": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "is_mobile": True},
}


def main() -> None:
    """Take one picture for each view."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium or google-chrome in PATH")
    with running_server(*SERVER.split()) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        with SyncClient(server.socket_path) as client:
            for name, view in VIEWS.items():
                pids = [
                    client.spawn([300 + i, *range(5, 40)], max_tokens=1900, ignore_eos=True).pids[0]
                    for i in range(NUM_PROCESSES)
                ]
                page = browser.new_page(**view)
                page.goto(f"{server.url}/ui")
                page.locator("#limit").fill("60")
                page.locator("#prompt").fill("What does an operating system do?")
                page.locator("#prompt").press("Enter")
                page.wait_for_timeout(WATCH_MILLISECONDS)
                page.screenshot(path=FOLDER / name)
                page.close()
                for pid in pids:
                    client.kill(pid)
                    client.wait(pid)
        browser.close()


if __name__ == "__main__":
    main()
