"""Makes the pictures of the live page: a server with little memory, three tenants, a headless Chromium.

pip install -e '.[browser]' && python docs/pictures/make.py
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from llmos.bench.server import Server, running_server
from syscalls.sync import SyncClient

FOLDER = Path(__file__).parent
SERVER = "--device cpu --threads 1 --pool-mib 8 --frame-kib 64 --max-running 8 --swap-mib 64"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
TENANTS = {"root": "admin = true", "search": "weight = 3", "support": "weight = 2", "batch": "weight = 1"}
NUM_PROCESSES = 30  # of each tenant
NUM_LEFT = 44  # when the picture is taken: the chat is over by then
SHARED_TOKENS = 96  # that the prompts of a tenant begin with
MAX_TOKENS = 1800
CHAT_MILLISECONDS = 120_000  # at most
LARGE, PHONE = {"width": 1360, "height": 1010}, {"width": 390, "height": 844}
VIEWS: dict[str, dict[str, Any]] = {
    "page-light.png": {"viewport": LARGE},
    "page-dark.png": {"viewport": LARGE, "color_scheme": "dark"},
    "page-phone.png": {"viewport": PHONE, "is_mobile": True, "has_touch": True},
}


def key_of(tenant: str) -> str:
    """The key of a tenant of these pictures."""
    return f"sk-llmos-{tenant}-{'x' * 30}"


def write_tenants(folder: str) -> Path:
    """Write the file of tenants."""
    path = Path(folder) / "tenants.toml"
    hashes = {name: hashlib.sha256(key_of(name).encode()).hexdigest() for name in TENANTS}
    path.write_text(
        "".join(f'[tenant.{name}]\nkeys_sha256 = ["{hashes[name]}"]\n{TENANTS[name]}\n' for name in TENANTS)
    )
    return path


@contextlib.contextmanager
def load(server: Server) -> Iterator[None]:
    """Processes of three tenants, some of whom came earlier; all end with the block."""
    with contextlib.ExitStack() as stack:
        for place, tenant in enumerate(("batch", "search", "support")):
            client = stack.enter_context(SyncClient(server.socket_path, key=key_of(tenant)))
            prefix = range(20 + 100 * place, 20 + 100 * place + SHARED_TOKENS)
            for i in range(NUM_PROCESSES):
                prompt, tokens = [*prefix, 400 + i], MAX_TOKENS if tenant == "batch" else 300 + 40 * i
                client.spawn(
                    prompt, max_tokens=tokens, ignore_eos=True, auto_reap=True, label=f"{tenant}-{i}"
                )
        yield


def take_picture(browser: Any, server: Server, path: Path, view: dict[str, Any]) -> None:
    """Open the page as the administrator, say something, watch for a while."""
    page = browser.new_page(**view)
    page.goto(f"{server.url}/ui")
    page.locator("#key").fill(key_of("root"))
    page.get_by_role("button", name="Open").click()
    page.get_by_text("Live", exact=True).wait_for()
    with load(server):
        page.locator("#limit").fill("400")
        page.locator("#prompt").fill("What is the capital of France?")
        page.locator("#prompt").press("Enter")
        page.get_by_text("ended:").wait_for(timeout=CHAT_MILLISECONDS)
        for seen in (lambda count: count > NUM_LEFT, lambda count: count <= NUM_LEFT):
            while not seen(int(page.locator("#count").inner_text())):
                page.wait_for_timeout(100)
        page.locator("h1").click()  # nothing has the focus
        page.screenshot(path=path)
    page.close()


def main() -> None:
    """Take one picture for each view."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium or google-chrome in PATH")
    with tempfile.TemporaryDirectory() as folder:
        options = (*SERVER.split(), "--tenants", str(write_tenants(folder)))
        with running_server(*options) as server, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
            for name, view in VIEWS.items():
                take_picture(browser, server, FOLDER / name, view)
            browser.close()


if __name__ == "__main__":
    main()
