"""Clients that are slow on purpose, many of each kind, beside honest streams: they end, and hurt nobody.

Each kind has its own end: a head that drips the keep-alive timeout, a body that drips the body timeout, a
stream that nobody reads the send timeout. The times are options, and short here; no test measures any.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from shell.gateway.body_file import LARGE_BYTES
from syscalls.process import ExitStatus
from syscalls.sampling import TokenLogprobs
from tests.gateway.harness import Gateway, KernelThread, hello, http_request, read_until, running_gateway
from tests.gateway.test_gateway_load import num_open_files
from tests.gateway.test_gateway_uploads import CHAT, head
from tests.scripted_kernel import ScriptedProcess

NUM_SLOW = 150  # of each kind that only drips
NUM_DEAF = 20  # who read nothing of an answer without an end
NUM_TOKENS = 300
DRIP_SECONDS = 0.02
TOP = TokenLogprobs(-0.5, tuple(range(20)), (-3.0,) * 20)
DEAF = hello(stream=True, logprobs=True, top_logprobs=20)
OPTIONS = ("--keep-alive-timeout", "4", "--body-timeout", "3", "--send-timeout", "1")


async def count_or_flood(process: ScriptedProcess) -> ExitStatus:
    """Honest streams get numbers; who asks for log-probabilities gets more than any buffer holds."""
    if process.spawn.sampling.logprobs is not None:
        while True:
            await process.emit(*b"x" * 1000, logprobs=(TOP,) * 1000)
    for number in range(NUM_TOKENS):
        await process.say(f"{number} ")
        await trio.sleep(0.005)
    return ExitStatus("stop")


@attrs.define
class Drip:
    """A connection that says what it has to say byte by byte."""

    raw: socket.socket
    data: bytes  # over and over
    place: int = 0
    heard: bytearray = attrs.field(factory=bytearray)
    is_over: bool = False


class Drippers:
    """Sends a byte on each connection now and then, in one thread, until all are closed by the gateway."""

    def __init__(self, gateway: Gateway, begin: bytes, data: bytes, count: int) -> None:
        self.drips = [Drip(gateway.connect(), data) for _ in range(count)]
        for drip in self.drips:
            drip.raw.sendall(begin)
            drip.raw.setblocking(False)
        self.thread = threading.Thread(target=self._run)
        self.is_given_up = threading.Event()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for drip in self.drips:
                selector.register(drip.raw, selectors.EVENT_READ, drip)
            while selector.get_map() and not self.is_given_up.is_set():
                for drip in (key.data for key in list(selector.get_map().values())):
                    try:
                        drip.raw.send(drip.data[drip.place % len(drip.data) :][:1])
                    except BlockingIOError:
                        pass
                    except OSError:
                        self._end(selector, drip)
                    drip.place += 1
                for key, _ in selector.select(DRIP_SECONDS):
                    drip = key.data
                    try:
                        received = drip.raw.recv(1 << 16)
                    except OSError:
                        received = b""
                    drip.heard += received
                    if not received:
                        self._end(selector, drip)

    @staticmethod
    def _end(selector: selectors.BaseSelector, drip: Drip) -> None:
        drip.is_over = True
        selector.unregister(drip.raw)
        drip.raw.close()

    def __enter__(self) -> Drippers:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_given_up.set()
        self.thread.join()
        for drip in self.drips:
            drip.raw.close()


def read_stream(gateway: Gateway) -> str:
    """The text of one honest stream."""
    text = ""
    with gateway.connect() as raw:
        raw.sendall(http_request(CHAT, hello(stream=True), headers="Connection: close\r\n"))
        received = read_until(raw, b"0\r\n\r\n")
    for line in received.split(b"\n"):
        if line.startswith(b"data: {"):
            text += content_of(line)
    return text


def content_of(line: bytes) -> str:
    """The text of one event."""
    event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


@pytest.mark.parametrize("kind", ["head", "body", pytest.param("large body", marks=pytest.mark.slow)])
def test_many_that_drip_are_ended(own_kernel: KernelThread, tmp_path: Path, kind: str) -> None:
    """Each gets its end: silence for a head, 408 for a body. Streams beside them are whole and in order."""
    own_kernel.program = count_or_flood
    begin = {
        "head": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Long: ",
        "body": head(100_000) + b'{"messages": "',
        "large body": head(LARGE_BYTES + 100_000) + b" " * (LARGE_BYTES + 1000),
    }[kind]
    count = NUM_SLOW if kind != "large body" else 40
    options = (*OPTIONS, "--max-large-bodies", "30")
    with running_gateway(own_kernel, tmp_path / "g", *options) as gateway:
        num_files = num_open_files(gateway)
        with Drippers(gateway, begin, b"y", count) as slow:
            for _ in range(2):
                assert read_stream(gateway) == "".join(f"{number} " for number in range(NUM_TOKENS))
            own_kernel.wait_until(lambda: all(drip.is_over for drip in slow.drips))
        answers = [bytes(drip.heard) for drip in slow.drips]
        if kind == "head":
            assert set(answers) == {b""}
        else:
            said = [answer.partition(b" ")[2][:3] for answer in answers]
            assert set(said) == {b"408"} if kind == "body" else {b"408", b"503"} >= set(said) >= {b"408"}
            assert kind == "body" or said.count(b"408") >= 30
        own_kernel.wait_until(lambda: num_open_files(gateway) <= num_files + 1)
        assert gateway.post(CHAT, hello()).status_code == 200


def test_many_that_never_read_are_ended(own_kernel: KernelThread, tmp_path: Path) -> None:
    """They lose their processes and their connections; a stream beside them is whole and in order."""
    own_kernel.program = count_or_flood
    with running_gateway(own_kernel, tmp_path / "g", *OPTIONS) as gateway:
        num_files = num_open_files(gateway)
        deaf = [gateway.connect(receive_buffer_bytes=4096) for _ in range(NUM_DEAF)]
        for raw in deaf:
            raw.sendall(http_request(CHAT, DEAF))
        assert read_stream(gateway) == "".join(f"{number} " for number in range(NUM_TOKENS))
        own_kernel.wait_until(
            lambda: len(own_kernel.kernel.spawned) == NUM_DEAF + 1 and not own_kernel.kernel.processes
        )
        own_kernel.wait_until(lambda: num_open_files(gateway) <= num_files + 1)
        assert gateway.post(CHAT, hello()).status_code == 200
        for raw in deaf:
            raw.close()
