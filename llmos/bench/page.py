"""`llmos bench page`: what the live page costs, with many processes that all decode on a simulated device.

The stream's bytes beside those of the whole state sent each time; processor time of kernel and gateway for
each look, which is what they use with a viewer less what they use without; and, where there are playwright
and a Chromium, what the browser's main thread does for each update.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from rich.progress import track

from llmos.bench.report import Report
from llmos.bench.server import Server, running_server
from syscalls.sync import SyncClient

NUM_PROCESSES = 1000
SECONDS = 10.0  # of each window
SETTLE_SECONDS = 2.0  # of the browser: loading is not an update
SERVER = (
    "--device", "sim", "--sim-step-ms", "100",  # ten tokens a second for each process
    "--max-running", "1024", "--max-step-tokens", "4096",
)  # fmt: skip
PROMPT = tuple(range(5, 20))
LOOK_BUDGET_MS = 25.0  # of kernel and gateway together: 5 % of a core at two looks a second
FRAME_BUDGET_MS = 16.0  # of the browser's main thread: a frame at 60 Hz
CHROMIUM_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run")
COUNT_UPDATES = """
window.updates = 0;
new PerformanceObserver(list => { updates += list.getEntriesByName('page-draw').length; })
  .observe({type: 'measure'});
"""
MAIN_THREAD = {
    "scripts": "ScriptDuration", "styles": "RecalcStyleDuration", "layout": "LayoutDuration",
    "all tasks": "TaskDuration",
}  # fmt: skip


def gateway_of(server: Server) -> int:
    """Process id of a server's gateway, which is a child of its kernel."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == server.os_pid and b"shell.gateway" in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
    raise ProcessLookupError(f"process {server.os_pid} has no gateway")


def processor_seconds(pid: int) -> float:
    """What all threads of a process have used so far. Not from /proc/PID/stat, which counts by hundredths."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Window(NamedTuple):
    """What a span of time cost; seconds."""

    elapsed: float
    kernel: float
    gateway: float


@contextmanager
def many_processes(server: Server, count: int) -> Iterator[None]:
    """Processes that decode until the end of the block."""
    with SyncClient(server.socket_path) as client:
        while client.statistics().num_processes:  # those before
            time.sleep(0.1)
        for i in range(count):
            client.spawn([300 + i % 200, *PROMPT], ignore_eos=True, label=f"chatcmpl-{i:024x}")
        while client.statistics().num_running < count:
            time.sleep(0.1)
        yield


def read_stream(server: Server, seconds: float) -> list[int]:
    """Bytes of each event of the page's stream in so many seconds, the whole state first."""
    sizes, deadline = [], time.perf_counter() + seconds
    with httpx.stream("GET", f"{server.url}/ui/stream", timeout=30) as response:
        for line in response.iter_lines():
            if line:
                sizes.append(len(line.encode()) + 2)
            if time.perf_counter() > deadline:
                break
    return sizes


@contextmanager
def _window(server: Server) -> Iterator[list[Window]]:
    """Measures the block; the list has the result afterwards."""
    pids = server.os_pid, gateway_of(server)
    found: list[Window] = []
    began, before = time.perf_counter(), [processor_seconds(pid) for pid in pids]
    yield found
    spent = [processor_seconds(pid) - was for pid, was in zip(pids, before, strict=True)]
    found.append(Window(time.perf_counter() - began, *spent))


def watch_in_browser(server: Server, chromium: str, seconds: float) -> dict[str, float]:
    """Milliseconds of the main thread for each update, by what was done. {}: there is no playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        page = browser.new_page()
        page.set_viewport_size({"width": 1920, "height": 1080})
        page.add_init_script(COUNT_UPDATES)
        page.goto(f"{server.url}/ui")
        page.get_by_text("Live", exact=True).wait_for()
        page.wait_for_timeout(1e3 * SETTLE_SECONDS)
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")

        def read() -> dict[str, float]:
            metrics: list[dict[str, Any]] = devtools.send("Performance.getMetrics")["metrics"]
            return {each["name"]: each["value"] for each in metrics} | {"updates": page.evaluate("updates")}

        before = read()
        page.wait_for_timeout(1e3 * seconds)
        now = read()
        browser.close()
    num_updates = now["updates"] - before["updates"]
    return {name: 1e3 * (now[key] - before[key]) / num_updates for name, key in MAIN_THREAD.items()}


def main(*, json_path: str | None, num_runs: int, is_quick: bool) -> int:
    """Measure, print the table, write the rows."""
    report = Report("page")
    count, seconds = (20, 1.5) if is_quick else (NUM_PROCESSES, SECONDS)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    rates, wholes, kernel, gateway = [], [], [], []
    browsers: list[dict[str, float]] = []
    with running_server(*SERVER) as server:
        for _ in track(range(num_runs), description="bench page", transient=True):
            with many_processes(server, count):
                with _window(server) as before:
                    time.sleep(seconds / 2)
                with _window(server) as watched:
                    sizes = read_stream(server, seconds)
                with _window(server) as after:  # steps get dearer as contexts grow
                    time.sleep(seconds / 2)
                if chromium and (found := watch_in_browser(server, chromium, seconds)):
                    browsers.append(found)
            (busy,), idle = watched, [sum(pair) for pair in zip(*before, *after, strict=True)]
            share = busy.elapsed / idle[0]
            kernel.append(1e3 * (busy.kernel - idle[1] * share) / len(sizes))
            gateway.append(1e3 * (busy.gateway - idle[2] * share) / len(sizes))
            rates.append(sum(sizes[1:]) / busy.elapsed / 1024)
            wholes.append(sizes[0] * (len(sizes) - 1) / busy.elapsed / 1024)

    case = f"{count} processes decode"
    rate, whole = statistics.median(rates), statistics.median(wholes)
    report.add(
        f"stream: {case}", "sent", rate, "KiB/s",
        against=f"the whole state each look, {whole:.0f} KiB/s", ratio=whole / rate, runs=num_runs,
    )  # fmt: skip
    for name, values in (("kernel", kernel), ("gateway", gateway)):
        value = statistics.median(values)  # a difference of two measurements: the runs say what it is worth
        report.add(
            f"processor: {case}", f"{name}, for each look", value, "ms",
            against=f"budget {LOOK_BUDGET_MS:.0f} ms; runs {min(values):.1f} to {max(values):.1f}",
            ratio=LOOK_BUDGET_MS / max(value, 1.0), runs=num_runs,
        )  # fmt: skip
    for name in MAIN_THREAD if browsers else ():
        value = max(statistics.median(each[name] for each in browsers), 0.01)
        report.add(
            f"browser: {case}", f"{name}, for each update", value, "ms",
            against=f"a frame, {FRAME_BUDGET_MS:.0f} ms", ratio=FRAME_BUDGET_MS / value, runs=num_runs,
        )  # fmt: skip
    report.print_table()
    if json_path:
        report.write_json(json_path)
    return 0
