"""What if an HTTP client hangs up, whatever its request does? Its memory is free, and nothing is listed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from llmos.bench.server import Server
from syscalls.process import ProcessInfo
from syscalls.sync import SyncClient
from tests.gateway.harness import http_request
from tests.system.leaks import counted_server

PATIENCE_SECONDS = 60.0
NUM_OTHERS = 6
MAX_ATTEMPTS = 100  # of a tenth of a second or so

PHASES: dict[str, Callable[[ProcessInfo], bool]] = {
    "queued": lambda p: p.state == "READY" and p.num_computed == 0,
    "prefill": lambda p: 0 < p.num_computed < p.usage.num_prompt_tokens,
    "decode": lambda p: p.usage.num_output_tokens > 3,
    "swapped": lambda p: p.state == "SWAPPED",
}


class PhaseMissed(Exception):
    """The process was over before anybody saw it in the phase."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Memory for a few, chunks that are small, and a new order of who may run every few steps."""
    options = "--device cpu --threads 1 --frame-kib 16 --pool-mib 4 --max-running 4 --max-chunk-tokens 16"
    swap = "--preempt swap --swap-mib 64 --policy rerank --rerank-steps 7"
    with counted_server(*options.split(), *swap.split()) as running:
        yield running


def hang_up(server: Server, client: SyncClient, phase: str, label: str, *, stream: bool) -> None:
    """Send a request, and hang up when its process is in the phase. Raises PhaseMissed."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    body = {
        "prompt": [300 + i % 90 for i in range(300)], "max_tokens": 1500, "ignore_eos": True,
        "stream": stream, "cache_salt": label,
    }  # fmt: skip
    until = time.monotonic() + PATIENCE_SECONDS
    with socket.create_connection((address.hostname, address.port)) as raw:
        raw.sendall(http_request("/v1/completions", body, headers=f"x-request-id: {label}\r\n"))
        is_begun = False
        while not any(map(PHASES[phase], found := find(client, label))):
            assert time.monotonic() < until, found
            is_over = phase != "swapped" and any(map(PHASES["decode"], found))
            if is_over or (is_begun and not found):
                raise PhaseMissed
            is_begun = bool(found)
    while find(client, label):
        assert time.monotonic() < until


def find(client: SyncClient, label: str) -> list[ProcessInfo]:
    """A request's processes, also those that have exited."""
    return [process for process in client.ps(everyone=True) if process.label == label]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", PHASES)
def test_what_if_the_client_hangs_up(server: Server, phase: str, stream: bool) -> None:
    """In each phase, among others that go on: its process is reaped, its pages are nobody's."""
    with SyncClient(server.socket_path) as client:
        for attempt in range(MAX_ATTEMPTS):  # a phase of a step or two is easily missed
            others = [
                client.spawn([400 + i, *range(5, 40)], max_tokens=1900, ignore_eos=True).pids[0]
                for i in range(NUM_OTHERS)
            ]
            try:
                hang_up(server, client, phase, f"gone-{phase}-{stream}-{attempt}", stream=stream)
            except PhaseMissed:
                continue
            else:
                check_nothing_is_left(server, client, set(others))
                break
            finally:
                for pid in others:
                    client.kill(pid)
                    client.wait(pid)
        else:
            pytest.fail(f"none of {MAX_ATTEMPTS} was seen in the phase {phase}")


def check_nothing_is_left(server: Server, client: SyncClient, others: set[int]) -> None:
    """Nothing but the others is listed by the gateway, or has memory."""
    listed = httpx.get(f"{server.url}/v1/requests", timeout=PATIENCE_SECONDS).json()["data"]
    assert {row["pid"] for row in listed} <= others
    (device,) = client.meminfo()
    assert {process.pid for process in device.processes} <= others
