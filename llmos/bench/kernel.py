"""`llmos bench kernel`: what the kernel costs, with a simulated device that takes no time.

Three numbers: bookkeeping per step with 256 running processes, a syscall's round trip on the Unix socket, and
tokens per second of 64 streams through the gateway, beside the same streams read from the syscall socket.
"""

from __future__ import annotations

import statistics
import time

import trio
from rich.progress import track

from llmos.bench.bookkeeping import step_seconds
from llmos.bench.report import Report
from llmos.bench.server import Server, running_server
from llmos.bench.sse_client import stream_completion
from syscalls.client import open_client
from syscalls.collector import settle_collector
from syscalls.sync import SyncClient

STEP_BUDGET_SECONDS = 1e-3
ROUND_TRIP_BUDGET_SECONDS = 150e-6
NUM_PROCESSES = 256
NUM_STREAMS = 64
NUM_PINGS = 3000
TOKENS_PER_STREAM = 200
PROMPT = tuple(range(20, 52))


def round_trip_seconds(server: Server) -> float:
    """Median of many pings, one after the other."""
    with SyncClient(server.socket_path) as client:
        times = []
        for _ in range(NUM_PINGS):
            began = time.perf_counter()
            client.ping()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _read_direct(server: Server) -> float:
    """Tokens per second of the streams, read from the syscall socket."""
    began = time.perf_counter()
    async with open_client(server.socket_path) as client, trio.open_nursery() as nursery:

        async def one() -> None:
            spawned = await client.spawn(
                PROMPT, max_tokens=TOKENS_PER_STREAM, ignore_eos=True, auto_reap=True
            )
            async for _ in client.stream(spawned.pids[0]):
                pass

        for _ in range(NUM_STREAMS):
            nursery.start_soon(one)
    return NUM_STREAMS * TOKENS_PER_STREAM / (time.perf_counter() - began)


async def _read_gateway(server: Server) -> float:
    """Tokens per second of the streams, read as server-sent events over HTTP."""
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(NUM_STREAMS):
            nursery.start_soon(stream_completion, server.url, None, list(PROMPT), TOKENS_PER_STREAM)
    return NUM_STREAMS * TOKENS_PER_STREAM / (time.perf_counter() - began)


def main(*, json_path: str | None, num_runs: int) -> int:
    """Measure, print the table, write the rows."""
    report = Report("kernel")
    steps, trips, direct, through = [], [], [], []
    settle_collector()  # as in the kernel's own process, whose work the first measurement does here
    with running_server("--device", "sim", "--sim-step-ms", "0") as server:
        for _ in track(range(num_runs), description="bench kernel", transient=True):
            steps.append(step_seconds(NUM_PROCESSES))
            trips.append(round_trip_seconds(server))
            direct.append(trio.run(_read_direct, server))
            through.append(trio.run(_read_gateway, server))
    step, trip = statistics.median(steps), statistics.median(trips)
    report.add(
        f"{NUM_PROCESSES} processes decode, simulated device without latency",
        "bookkeeping per step", step * 1e6, "us",
        against="budget 1000 us", ratio=STEP_BUDGET_SECONDS / step, runs=num_runs,
    )  # fmt: skip
    report.add(
        "ping on the Unix socket", "median round trip", trip * 1e6, "us",
        against="budget 150 us", ratio=ROUND_TRIP_BUDGET_SECONDS / trip, runs=num_runs,
    )  # fmt: skip
    report.add(
        f"{NUM_STREAMS} streams of {TOKENS_PER_STREAM} tokens, syscall socket",
        "throughput", statistics.median(direct), "tokens/s",
        against="itself", ratio=1.0, runs=num_runs,
    )  # fmt: skip
    report.add(
        f"{NUM_STREAMS} streams of {TOKENS_PER_STREAM} tokens, gateway",
        "throughput", statistics.median(through), "tokens/s",
        against="syscall socket", ratio=statistics.median(through) / statistics.median(direct), runs=num_runs,
    )  # fmt: skip
    report.print_table()
    if json_path:
        report.write_json(json_path)
    return 0
