"""Many at once, and many one after another: no token lost or out of order, nothing left behind."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from syscalls.process import ExitStatus
from tests.gateway.harness import (
    Gateway,
    KernelThread,
    hello,
    http_request,
    parse_events,
    read_until,
    running_gateway,
)
from tests.scripted_kernel import ScriptedProcess

CHAT = "/v1/chat/completions"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def num_open_files(gateway: Gateway) -> int:
    """How many descriptors the gateway's process has."""
    return len(os.listdir(f"/proc/{gateway.process.pid}/fd"))


def resident_kib(gateway: Gateway) -> int:
    """How much memory the gateway's process has."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


@pytest.mark.parametrize(
    ("num_streams", "num_tokens", "num_rounds"),
    [(32, 100, 2), pytest.param(256, 400, 6, marks=pytest.mark.slow)],
)
def test_no_token_is_lost_or_out_of_order(
    own_kernel: KernelThread, tmp_path: Path, num_streams: int, num_tokens: int, num_rounds: int
) -> None:
    """Every stream has its process's tokens, all of them, in order; memory is that of the first round."""

    async def count(process: ScriptedProcess) -> ExitStatus:
        for number in range(num_tokens):
            await process.say(f"{process.pid}:{number} ")
        return ExitStatus("stop")

    own_kernel.program = count
    texts: list[str] = []

    def read_one(gateway: Gateway) -> None:
        with gateway.connect() as raw:
            raw.settimeout(300)
            raw.sendall(http_request(CHAT, hello(stream=True), headers="Connection: close\r\n"))
            received = read_until(raw, b"0\r\n\r\n")
        chunked = received.partition(b"\r\n\r\n")[2]
        content = b""
        while chunked:
            size, _, chunked = chunked.partition(b"\r\n")
            content, chunked = content + chunked[: int(size, 16)], chunked[int(size, 16) + 2 :]
        events = parse_events(content)
        texts.append("".join(c["delta"].get("content") or "" for e in events for c in e["choices"]))

    with running_gateway(own_kernel, tmp_path / "g") as gateway:
        memory = []
        for _ in range(num_rounds):
            threads = [threading.Thread(target=read_one, args=(gateway,)) for _ in range(num_streams)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            memory.append(resident_kib(gateway))
    assert memory[-1] < memory[0] + 16 * 1024
    pids = {text.partition(":")[0] for text in texts}
    assert len(texts) == len(pids) == num_streams * num_rounds
    for text in texts:
        pid = text.partition(":")[0]
        assert text == "".join(f"{pid}:{number} " for number in range(num_tokens))


@pytest.mark.parametrize("num_connections", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_what_comes_and_goes_leaves_nothing(
    own_kernel: KernelThread, tmp_path: Path, num_connections: int
) -> None:
    """Silent, cut in the headers, cut in the body, reset in the answer: descriptors and memory come back."""
    request = http_request(CHAT, hello(stream=True))
    pieces = (b"", request[:30], request[:-5], request)
    with running_gateway(own_kernel, tmp_path / "g", "--keep-alive-timeout", "2") as gateway:

        def come_and_go(count: int) -> None:
            for number in range(count):
                with gateway.connect() as raw:
                    raw.sendall(pieces[number % len(pieces)])
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

        def is_quiet() -> bool:
            return num_open_files(gateway) <= before and not own_kernel.kernel.processes

        before = num_open_files(gateway) + 1
        come_and_go(200)  # what is allocated once is allocated now
        own_kernel.wait_until(is_quiet)
        memory = resident_kib(gateway)
        come_and_go(num_connections)
        own_kernel.wait_until(is_quiet)
        assert gateway.post(CHAT, hello()).status_code == 200
        assert resident_kib(gateway) < memory + 16 * 1024
