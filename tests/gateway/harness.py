"""A real gateway process in front of a scripted kernel, driven by plain synchronous tests."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx
import trio

from syscalls.process import ExitStatus
from syscalls.sampling import TokenLogprobs
from tests.scripted_kernel import (
    END,
    STOPPED_BY_MODEL,
    Program,
    ScriptedKernel,
    ScriptedProcess,
    open_scripted_kernel,
    say_hello,
    take_a_moment,
)

PATIENCE_SECONDS = 60.0  # for what must happen at once, on a busy machine
ROOT = Path(__file__).parents[2]


class KernelThread:
    """Runs a scripted kernel in a thread of its own, so that tests may block."""

    def __init__(self, folder: Path, keys: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.keys = keys
        self.socket_path = folder / "llmos.sock"
        self.program: Program = say_hello
        self.kernel: ScriptedKernel
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), name="scripted-kernel")

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with open_scripted_kernel(
            self.folder, lambda process: self.program(process), keys=self.keys
        ) as self.kernel:
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> KernelThread:
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.call(self._stop.set)
            self._thread.join(PATIENCE_SECONDS)
        self.socket_path.unlink(missing_ok=True)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the kernel's thread."""
        return trio.from_thread.run_sync(function, trio_token=self._token)

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """Wait until `condition` is true; returns what it returned."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not come true"
            time.sleep(0.005)
        return found

    def wait_until_empty(self) -> None:
        """Wait until no process is left; one that stays is named, with what it was spawned by."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := list(self.kernel.processes.values()):
            assert time.monotonic() < deadline, [
                (process.state, process.end, process.spawn) for process in left
            ]
            time.sleep(0.005)

    def make_event(self) -> trio.Event:
        """Make an event for a program to wait for; set it by `call`."""
        event: trio.Event = self.call(trio.Event)
        return event

    def reset(self) -> None:
        """Forget what a test has set up."""
        self.program = say_hello
        kernel = self.kernel
        self.call(lambda: [part.clear() for part in (kernel.refusals, kernel.spawned, kernel.calls)])
        kernel.rates = None
        kernel.embedding = take_a_moment


def says(*parts: str | bytes | int, end: ExitStatus = STOPPED_BY_MODEL) -> Program:
    """Make a program that outputs text, bytes and token ids, then ends."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        for part in parts:
            if isinstance(part, int):
                await process.emit(part)
            else:
                await process.emit(*(part.encode() if isinstance(part, str) else part))
        if end.stop_token is not None:
            await process.emit(end.stop_token)
        return end

    return program


def say_scored(text: str) -> Program:
    """A program whose tokens have log-probabilities, those of the prompt as well."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        score = TokenLogprobs(-0.5, (104, 105), (-0.5, -1.5), 1)
        process.prompt_logprobs = (score,) * (len(process.spawn.prompt) - 1)
        for token in (*text.encode(), END):
            await process.emit(token, logprobs=(score,))
        return STOPPED_BY_MODEL

    return program


async def say_forever(process: ScriptedProcess) -> ExitStatus:
    """A program that goes on until its death; its limit is further away than the patience of a test."""
    while True:
        await process.emit(ord("x"))
        await trio.sleep(0.02)


async def say_nothing(process: ScriptedProcess) -> ExitStatus:
    """A program that hangs before its first token."""
    await trio.sleep_forever()
    return STOPPED_BY_MODEL


@attrs.define(eq=False)
class Gateway:
    """A running gateway process."""

    process: subprocess.Popen[bytes]
    url: str
    log_path: Path
    trusting: ssl.SSLContext | None = None  # what its clients go through; None: it serves without TLS

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return f"{self.url}/v1"

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Send a JSON body."""
        verify = self.trusting or True
        return httpx.post(f"{self.url}{path}", json=body, timeout=PATIENCE_SECONDS, verify=verify, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Fetch a page."""
        verify = self.trusting or True
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_SECONDS, verify=verify, **options)

    def connect(self, receive_buffer_bytes: int | None = None) -> socket.socket:
        """Open a raw connection, through TLS where that is served."""
        address = urlsplit(self.url)
        assert address.hostname is not None
        raw = socket.socket()
        if receive_buffer_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        raw.settimeout(PATIENCE_SECONDS)
        raw.connect((address.hostname, address.port))
        if self.trusting is not None:
            return self.trusting.wrap_socket(raw, server_hostname=address.hostname)
        return raw

    def log_lines(self) -> list[dict[str, Any]]:
        """What it has logged so far; every line must be JSON, but for one that is being written."""
        whole, _, _ = self.log_path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def wait_ready(self) -> None:
        """Wait until it has a kernel with a model."""
        with httpx.Client(timeout=PATIENCE_SECONDS, verify=self.trusting or True) as client:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while client.get(f"{self.url}/health/ready").status_code != 200:
                assert time.monotonic() < deadline, "the gateway did not become ready"
                time.sleep(0.01)


@contextmanager
def running_gateway(
    kernel: KernelThread,
    folder: Path,
    *options: str,
    wait: bool = True,
    trusting: ssl.SSLContext | None = None,
) -> Iterator[Gateway]:
    """Start a gateway on a free port and wait until it serves; it is killed at the end if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "gateway.log"
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "shell.gateway", "--listen", "127.0.0.1:0", "--log-format", "json"]
    command += ["--socket", str(kernel.socket_path), "--ready-fd", str(writing), *options]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[writing], cwd=ROOT)
    os.close(writing)
    try:
        with os.fdopen(reading) as ready:
            line = ready.readline()
        assert line, log_path.read_text()
        gateway = Gateway(process, line.strip(), log_path, trusting)
        if wait:
            gateway.wait_ready()
        yield gateway
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_SECONDS)


def http_request(path: str, body: Any, method: str = "POST", headers: str = "") -> bytes:
    """Write a request by hand."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(payload)}\r\n{headers}\r\n"
    return head.encode() + payload


def read_until(raw: socket.socket, mark: bytes) -> bytes:
    """Receive until `mark` was seen, or the end."""
    received = b""
    while mark not in received:
        data = raw.recv(1 << 16)
        if not data:
            break
        received += data
    return received


def events_of(response: httpx.Response) -> list[Any]:
    """Return a stream's events; checks the framing of every byte."""
    return parse_events(response.content)


def parse_events(content: bytes) -> list[Any]:
    """Parse a whole event stream: `data: ` lines and comments, LF only, `[DONE]` last."""
    assert content.endswith(b"\n\n")
    assert b"\r" not in content
    events: list[Any] = []
    for block in content.split(b"\n\n")[:-1]:
        if block.startswith(b":"):
            continue
        assert block.startswith(b"data: "), block
        assert b"\n" not in block
        data = block.removeprefix(b"data: ")
        events.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    assert events[-1] == "[DONE]"
    assert events.count("[DONE]") == 1
    return events[:-1]


def hello(**more: Any) -> dict[str, Any]:
    """A small chat body."""
    return {"messages": [{"role": "user", "content": "hi"}], **more}
