"""What if the gateway is killed with everything under way: streams, background responses, stored ones?"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from llmos.bench.gateway import find_gateway, wait_until_ready
from llmos.bench.server import Server, running_server
from llmos.bench.stream_load import make_request
from syscalls.sync import SyncClient
from tests.gateway.harness import read_until
from tests.system.leaks import assert_no_leak, count
from tests.system.ports import find_free_port

PATIENCE_SECONDS = 60.0
NUM_TOKENS = 120  # of a response in the background: over two seconds


@pytest.fixture
def server() -> Iterator[Server]:
    """A simulated server whose gateway comes back on the same port. Ends with the leak count."""
    options = ("--device", "sim", "--sim-step-ms", "20")
    with running_server(*options, "--listen", f"127.0.0.1:{find_free_port()}") as running:
        wait_until_ready(running.url)
        before = count(running)
        yield running
        assert_no_leak(running, before)


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for something that comes true by itself."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def open_stream(server: Server, number: int) -> socket.socket:
    """A chat that streams for longer than the gateway lives; returns once it has begun."""
    address = urlsplit(server.url)
    raw = socket.create_connection((address.hostname or "", address.port or 0), timeout=PATIENCE_SECONDS)
    raw.sendall(make_request(address.netloc, number, 0, 1500))
    assert b" 200 " in read_until(raw, b"\r\n")
    return raw


def read_to_the_end(raw: socket.socket) -> bytes:
    """What is left of a stream whose server is gone."""
    said = b""
    with raw:
        try:
            while data := raw.recv(1 << 16):
                said += data
        except ConnectionResetError:
            pass
    return said


@pytest.mark.parametrize(
    ("num_streams", "num_responses", "num_kills"),
    [(12, 2, 1), pytest.param(200, 24, 2, marks=pytest.mark.slow)],
)
def test_what_lives_on(server: Server, num_streams: int, num_responses: int, num_kills: int) -> None:
    """Streams are cut, and never ended as if whole; the rest is there, and says what it would have said."""
    with httpx.Client(base_url=f"{server.url}/v1", timeout=PATIENCE_SECONDS) as http:
        model = http.get("/models").json()["data"][0]["id"]

        def ask(number: int, **more: Any) -> dict[str, Any]:
            body = {"model": model, "input": f"Story {number}.", "temperature": 0, "ignore_eos": True}
            answer = http.post("/responses", json={**body, "max_output_tokens": NUM_TOKENS, **more})
            assert answer.status_code == 200, answer.text
            return answer.json()

        def fetch(response_id: str) -> dict[str, Any]:
            return http.get(f"/responses/{response_id}").json()

        stored = ask(0)
        with SyncClient(server.socket_path) as client:
            (own,) = client.spawn((5, 6, 7), max_tokens=400, ignore_eos=True).pids
            going: list[str] = []
            for _ in range(num_kills):
                for _ in range(num_responses):
                    going.append(ask(len(going) + 1, background=True)["id"])
                streams = [open_stream(server, number) for number in range(num_streams)]
                gateway = find_gateway(server)
                os.kill(gateway, signal.SIGKILL)
                assert not any(b"[DONE]" in read_to_the_end(raw) for raw in streams)
                # The gateway's own processes go with its session, also while no gateway is there.
                num_left = len(going) + 2
                wait_until(lambda num_left=num_left: client.statistics().num_processes == num_left)
                wait_until(lambda dead=gateway: is_replaced(server, dead))
                wait_until_ready(server.url)
            http.get("/models")  # on a connection to the new gateway
            wait_until(lambda: all(fetch(each)["status"] == "incomplete" for each in going))
            for number, response_id in enumerate(going, 1):
                told = fetch(response_id)
                assert told["usage"]["output_tokens"] == NUM_TOKENS
                assert text_of(told) == text_of(ask(number, store=False))
            assert text_of(fetch(stored["id"])) == text_of(stored) != ""
            tokens = [token for output in client.stream(own) for token in output.tokens]
            assert len(tokens) == 400
            client.wait(own)
        for response_id in (stored["id"], *going):
            assert http.delete(f"/responses/{response_id}").status_code == 200
    assert list(Path(f"{server.socket_path}.responses").glob("*.json")) == []


def is_replaced(server: Server, dead: int) -> bool:
    """True when the kernel has another gateway than that one."""
    try:
        return find_gateway(server) != dead
    except (ProcessLookupError, FileNotFoundError):
        return False


def text_of(response: dict[str, Any]) -> str:
    """The text of a response's only message."""
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))
