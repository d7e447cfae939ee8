"""What if the client goes away, the kernel goes away, or the gateway is told to go?"""

from __future__ import annotations

import re
import signal
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from syscalls.process import ExitStatus, Kill
from tests.gateway.harness import (
    PATIENCE_SECONDS,
    Gateway,
    KernelThread,
    hello,
    http_request,
    parse_events,
    read_until,
    running_gateway,
    say_forever,
    say_nothing,
)
from tests.gateway.test_gateway_errors import check_error
from tests.scripted_kernel import END, STOPPED_BY_MODEL, ScriptedProcess, read_tokens

CHAT = "/v1/chat/completions"


def is_killed(kernel: KernelThread, count: int = 1) -> Any:
    """Make a condition: so many kills have come, and no process is left."""
    return lambda: (
        sum(isinstance(call, Kill) for call in kernel.kernel.calls) >= count and not kernel.kernel.processes
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("program", [say_forever, say_nothing])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_what_if_the_client_disconnects(
    gateway: Gateway, kernel: KernelThread, program: Any, stream: bool, how: str
) -> None:
    """Its processes are killed at once, in prefill and in decode, however it leaves, and the log says 499."""
    kernel.program = program
    request_id = f"gone-{how}-{stream}-{program.__name__}"
    with gateway.connect() as raw:
        body = hello(stream=stream, n=2)
        raw.sendall(http_request(CHAT, body, headers=f"x-request-id: {request_id}\r\n"))
        kernel.wait_until(lambda: len(kernel.kernel.spawned) == 2)
        if how == "reset":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half-close":
            raw.shutdown(socket.SHUT_WR)
            kernel.wait_until(is_killed(kernel, 2))
    kernel.wait_until(is_killed(kernel, 2))
    kernel.wait_until(
        lambda: any(
            line.get("request_id") == request_id and line["status"] == 499 for line in gateway.log_lines()
        )
    )


def test_what_if_the_client_disconnects_while_sending(gateway: Gateway, kernel: KernelThread) -> None:
    """A request cut in its body spawns nothing."""
    with gateway.connect() as raw:
        raw.sendall(http_request(CHAT, hello())[:-5])
    assert gateway.get("/health").status_code == 200
    assert kernel.kernel.spawned == []


async def say_late(late: trio.Event, process: ScriptedProcess) -> ExitStatus:
    """A program whose last words wait for an event."""
    await process.say("first, ")
    await late.wait()
    await process.say("last")
    await process.emit(END)
    return STOPPED_BY_MODEL


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "field"), [(CHAT, "messages"), ("/v1/completions", "prompt"), ("/v1/responses", "input")]
)
def test_what_if_the_deadline_passes(
    gateway: Gateway, kernel: KernelThread, path: str, field: str, stream: bool
) -> None:
    """Before the first token: 408 that is not retried, or an event of a stream; after it, it goes on."""
    body = {field: hello()["messages"] if field == "messages" else "hi", "stream": stream}
    kernel.program = say_nothing
    response = gateway.post(path, {**body, "deadline_ms": 60})
    if stream:
        assert '"code":"deadline_exceeded"' in response.text
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        error = check_error(response, 408, "deadline_exceeded", "deadline_ms")
        assert error["type"] == "timeout_error"
        assert response.headers["x-should-retry"] == "false"
    kernel.wait_until(is_killed(kernel))
    for seconds in (0.3, 2, 20):  # until the first token comes in time, busy as the machine may be
        late = kernel.make_event()
        kernel.program = partial(say_late, late)
        kernel.kernel.spawned.clear()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(gateway.post, path, {**body, "deadline_ms": seconds * 1000, "store": False})
            kernel.wait_until(lambda: kernel.kernel.spawned or answer.done())  # noqa: B023
            time.sleep(seconds + 0.1)  # until the deadline is over
            kernel.call(late.set)
        if "deadline_exceeded" not in answer.result().text:
            break
    assert answer.result().status_code == 200
    assert "deadline_exceeded" not in answer.result().text
    assert read_tokens(kernel.kernel.spawned[-1].output) == "first, last<|end|>"


def test_what_if_too_many_come_at_once(own_kernel: KernelThread, tmp_path: Path) -> None:
    """Beyond the bound a request is refused immediately, and admitted again when a place is free."""
    own_kernel.program = say_nothing
    with running_gateway(own_kernel, tmp_path / "g", "--max-in-flight", "1") as gateway:
        with gateway.connect() as raw:
            raw.sendall(http_request(CHAT, hello()))
            own_kernel.wait_until(lambda: own_kernel.kernel.spawned)
            response = gateway.post(CHAT, hello())
            assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
            assert response.headers["retry-after"] == "1"
        own_kernel.wait_until(is_killed(own_kernel))
        own_kernel.reset()
        own_kernel.wait_until(lambda: gateway.post(CHAT, hello()).status_code == 200)


def test_what_if_the_kernel_restarts(tmp_path: Path) -> None:
    """Requests fail with 503 meanwhile, streams with an event; a new kernel is found without help."""
    folder = tmp_path / "kernel"
    with KernelThread(folder) as first:
        first.program = say_forever
        with running_gateway(first, tmp_path / "g") as gateway:
            with gateway.connect() as raw:
                raw.sendall(http_request(CHAT, hello(stream=True), headers="Connection: close\r\n"))
                read_until(raw, b'"content":"x')
                first.__exit__()
                rest = read_until(raw, b"0\r\n\r\n")
            assert b'"code":"model_loading"' in rest
            assert b"data: [DONE]\n\n" in rest
            response = gateway.post(CHAT, hello())
            assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
            assert gateway.get("/health").status_code == 503
            assert gateway.get("/health/ready").status_code == 503
            assert gateway.get("/metrics").status_code == 200
            assert gateway.get("/version").json()["kernel"] is None
            with KernelThread(folder):
                gateway.wait_ready()
                assert gateway.post(CHAT, hello()).status_code == 200


def test_what_if_the_gateway_starts_first(tmp_path: Path) -> None:
    """Without a kernel it serves its own pages and says so; it connects when there is one."""
    kernel = KernelThread(tmp_path / "kernel")
    with running_gateway(kernel, tmp_path / "g", wait=False) as gateway:
        assert gateway.get("/health").json()["error"]["type"] == "service_unavailable"
        with kernel:
            gateway.wait_ready()
            assert gateway.post(CHAT, hello()).status_code == 200


def test_what_if_the_model_is_still_loading(own_kernel: KernelThread, tmp_path: Path) -> None:
    """A model that is listed and not ready is a 503, and alive."""
    ready = own_kernel.kernel.models[0]
    own_kernel.kernel.models[0] = msgspec.structs.replace(ready, ready=False)
    with running_gateway(own_kernel, tmp_path / "g", wait=False) as gateway:
        own_kernel.wait_until(lambda: gateway.get("/health").status_code == 200)
        assert gateway.get("/health/ready").json()["error"]["code"] == "model_loading"
        response = gateway.post(CHAT, hello())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
        assert response.headers["retry-after"]
        own_kernel.kernel.models[0] = ready
        assert gateway.post(CHAT, hello()).status_code == 200


def test_what_if_a_model_is_being_loaded_beside_others(own_kernel: KernelThread, tmp_path: Path) -> None:
    """It is not there yet, by either of its names: clients try again."""
    own_kernel.kernel.loading.append("small")
    with running_gateway(own_kernel, tmp_path / "g", "--alias", "nick=small") as gateway:
        for name in ("small", "nick"):
            for response in (gateway.post(CHAT, hello(model=name)), gateway.get(f"/v1/models/{name}")):
                assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
                assert response.headers["retry-after"]
        assert gateway.post(CHAT, hello(model="other")).status_code == 404
        assert gateway.post(CHAT, hello()).status_code == 200
        assert [row["id"] for row in gateway.get("/v1/models").json()["data"]] == ["scripted"]


def test_requests_wait_for_a_model_that_loads(own_kernel: KernelThread, tmp_path: Path) -> None:
    """Those that it serves, as soon as it does; one that is gone is not waited for, and is told."""
    kernel = own_kernel.kernel
    with running_gateway(own_kernel, tmp_path / "g", "--model-load-wait", "1000") as gateway:
        kernel.loading.append("small")
        with gateway.connect() as raw, gateway.connect() as other:
            for each, model in ((raw, "small"), (other, "small")):
                each.sendall(http_request(CHAT, hello(model=model), headers="Connection: close\r\n"))
            own_kernel.wait_until(lambda: gateway.get("/load").json()["server_load"] == 2)
            other.shutdown(socket.SHUT_WR)
            own_kernel.wait_until(lambda: gateway.get("/load").json()["server_load"] == 1)
            assert gateway.post(CHAT, hello(model="nobody")).status_code == 404
            assert not kernel.spawned
            loaded = msgspec.structs.replace(kernel.models[0], name="small")
            own_kernel.call(lambda: (kernel.models.append(loaded), kernel.loading.clear()))
            assert read_until(raw, b'"finish_reason":"stop"').startswith(b"HTTP/1.1 200")
        assert [process.spawn.model for process in kernel.spawned] == ["small"]
    with running_gateway(own_kernel, tmp_path / "h", "--model-load-wait", "0.01") as gateway:
        kernel.loading.append("large")
        response = gateway.post(CHAT, hello(model="large"))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")


def test_drain_lets_running_requests_finish(own_kernel: KernelThread, tmp_path: Path) -> None:
    """SIGTERM stops admission; what runs finishes with its own end; then the exit status is 0."""
    resume = own_kernel.make_event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say("before")
        await resume.wait()
        await process.say(" after")
        await process.emit(END)
        return STOPPED_BY_MODEL

    own_kernel.program = program
    with running_gateway(own_kernel, tmp_path / "g") as gateway, gateway.connect() as raw:
        raw.sendall(http_request(CHAT, hello(stream=True), headers="Connection: close\r\n"))
        received = read_until(raw, b"before")
        gateway.process.send_signal(signal.SIGTERM)
        own_kernel.wait_until(lambda: gateway.get("/health/ready").status_code == 503)
        response = gateway.post(CHAT, hello())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
        assert gateway.get("/health").status_code == 200
        own_kernel.call(resume.set)
        received += read_until(raw, b"0\r\n\r\n")
        text = b"".join(re.findall(rb'"content":"([^"]*)"', received))
        assert text == b"before after"
        assert b'"finish_reason":"stop"' in received
        assert gateway.process.wait(PATIENCE_SECONDS) == 0


def test_drain_ends_the_rest_with_an_error(own_kernel: KernelThread, tmp_path: Path) -> None:
    """After the shutdown timeout a stream gets the error event, a plain request a 503, and all are killed."""
    own_kernel.program = say_forever
    with running_gateway(own_kernel, tmp_path / "g", "--shutdown-timeout", "0.1") as gateway:
        with gateway.connect() as streaming, gateway.connect() as plain:
            streaming.sendall(http_request(CHAT, hello(stream=True), headers="Connection: close\r\n"))
            plain.sendall(http_request(CHAT, hello()))
            read_until(streaming, b'"content":"x')
            own_kernel.wait_until(lambda: len(own_kernel.kernel.spawned) == 2)
            gateway.process.send_signal(signal.SIGTERM)
            rest = read_until(streaming, b"0\r\n\r\n")
            assert b'"code":"draining"' in rest
            assert b"data: [DONE]\n\n" in rest
            answer = read_until(plain, b"draining")
            assert answer.startswith(b"HTTP/1.1 503")
        assert gateway.process.wait(PATIENCE_SECONDS) == 0
        assert own_kernel.wait_until(is_killed(own_kernel, 2))


def test_second_signal_ends_at_once(own_kernel: KernelThread, tmp_path: Path) -> None:
    """Who asks twice does not wait; the kernel ends the processes with the session."""
    own_kernel.program = say_nothing
    with running_gateway(own_kernel, tmp_path / "g", "--shutdown-timeout", "1000") as gateway:
        with gateway.connect() as raw:
            raw.sendall(http_request(CHAT, hello()))
            own_kernel.wait_until(lambda: own_kernel.kernel.spawned)
            gateway.process.send_signal(signal.SIGTERM)
            own_kernel.wait_until(lambda: any(line["event"] == "draining" for line in gateway.log_lines()))
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(PATIENCE_SECONDS) == 1
        own_kernel.wait_until(lambda: not own_kernel.kernel.processes)


def test_stalled_client_does_not_hold_the_shutdown(own_kernel: KernelThread, tmp_path: Path) -> None:
    """A client with a full window is left behind when the drain is over."""
    from syscalls.sampling import TokenLogprobs

    top = TokenLogprobs(-0.5, tuple(range(20)), (-3.0,) * 20)

    async def flood(process: ScriptedProcess) -> ExitStatus:
        await process.emit(*b"x" * 4000, logprobs=(top,) * 4000)
        return ExitStatus("length")

    own_kernel.program = flood
    with running_gateway(own_kernel, tmp_path / "g", "--shutdown-timeout", "0.1") as gateway:
        with gateway.connect(receive_buffer_bytes=4096) as raw:
            raw.sendall(http_request(CHAT, hello(stream=True, logprobs=True, top_logprobs=20)))
            read_until(raw, b"\r\n\r\n")
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(PATIENCE_SECONDS) == 0


def test_address_in_use_is_told(gateway: Gateway, tmp_path: Path) -> None:
    """A port that is taken is one log line and exit status 1, not a traceback."""
    import subprocess
    import sys

    from tests.gateway.harness import ROOT

    address = gateway.url.removeprefix("http://")
    command = [sys.executable, "-m", "shell.gateway", "--listen", address, "--log-format", "json"]
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stdout == b""
    assert b"Traceback" not in ended.stderr
    assert b"not_started" in ended.stderr


def test_one_log_line_for_each_request(gateway: Gateway, kernel: KernelThread) -> None:
    """The line has what an operator asks for first; nothing else is printed."""
    gateway.post(CHAT, hello(zzz=1), headers={"x-request-id": "log-me"})
    (line,) = kernel.wait_until(
        lambda: [line for line in gateway.log_lines() if line.get("request_id") == "log-me"]
    )
    assert line["event"] == "request"
    assert (line["status"], line["path"], line["model"], line["finish"]) == (200, CHAT, "scripted", ["stop"])
    assert (line["num_prompt_tokens"], line["num_completion_tokens"]) == (5, 6)
    assert line["ignored"] == ["zzz"]
    assert line["pids"] == [kernel.kernel.spawned[-1].pid]
    assert 0 < line["first_token_seconds"] <= line["seconds"]


def test_keep_alive_connection_is_reused(gateway: Gateway) -> None:
    """Requests after a stream, an error and a HEAD go over the same connection."""
    with httpx.Client(
        base_url=gateway.url, limits=httpx.Limits(max_connections=1), timeout=PATIENCE_SECONDS
    ) as client:
        ports = set()
        for method, path, body in (
            ("POST", CHAT, hello(stream=True)),
            ("POST", CHAT, {}),
            ("HEAD", "/v1/models", None),
            ("GET", "/nope", None),
            ("POST", CHAT, hello()),
        ):
            with client.stream(method, path, json=body) as response:
                ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
                response.read()
        assert len(ports) == 1


def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    """Two requests in one segment get two answers."""
    with gateway.connect() as raw:
        raw.sendall(http_request("/version", b"", "GET") + http_request("/nope", b"", "GET"))
        received = read_until(raw, b"unknown_url")
    assert received.index(b"HTTP/1.1 200") < received.index(b"HTTP/1.1 404")


def test_stream_framing_survives_a_reused_connection(gateway: Gateway) -> None:
    """After one stream ends the next request on the connection has a stream of its own."""
    with httpx.Client(base_url=gateway.url, timeout=PATIENCE_SECONDS) as client:
        for _ in range(3):
            assert parse_events(client.post(CHAT, json=hello(stream=True)).content)


def test_what_if_no_model_is_there_yet(own_kernel: KernelThread, tmp_path: Path) -> None:
    """Before the kernel lists a model, one that is asked for by name may still come: clients try again."""
    models = own_kernel.kernel.models
    listed, models[:] = list(models), []
    with running_gateway(own_kernel, tmp_path / "g", wait=False) as gateway:
        own_kernel.wait_until(lambda: gateway.get("/health").status_code == 200)
        response = gateway.post(CHAT, hello())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
        assert response.headers["retry-after"]
        models[:] = listed
        assert gateway.post(CHAT, hello()).status_code == 200


def test_ready_is_said_when_a_request_is_served(own_kernel: KernelThread, tmp_path: Path) -> None:
    """A kernel that takes its time keeps the gateway from saying so: the first request finds a session."""
    go_on = threading.Event()
    busy = threading.Thread(target=own_kernel.call, args=[go_on.wait])
    busy.start()
    timer = threading.Timer(2.0, go_on.set)
    timer.start()
    with running_gateway(own_kernel, tmp_path / "g", wait=False) as gateway:
        assert gateway.get("/v1/models").status_code == 200
    busy.join()
    timer.join()
