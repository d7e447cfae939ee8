"""HTTP/1.1, plain and over TLS: heads, bodies and ends of connections, byte by byte."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shell.gateway.http1 import OUTLET, Connection
from shell.gateway.tls import TlsCodec, make_server_context
from tests.gateway.harness import (
    PATIENCE_SECONDS,
    Gateway,
    KernelThread,
    hello,
    http_request,
    read_until,
    running_gateway,
)

CHAT = "/v1/chat/completions"
RESET = struct.pack("ii", 1, 0)


Way = tuple[list[str], ssl.SSLContext | None]
"""How clients come: the gateway's options, and what the clients go through."""


@pytest.fixture(params=["plain", "tls"])
def way(request: pytest.FixtureRequest, tls_options: list[str], trusting: ssl.SSLContext) -> Way:
    """Each of the two ways to the same server."""
    return ([], None) if request.param == "plain" else (tls_options, trusting)


@pytest.fixture(scope="module")
def tls_gateway(
    shared_kernel: KernelThread,
    tmp_path_factory: pytest.TempPathFactory,
    tls_options: list[str],
    trusting: ssl.SSLContext,
) -> Iterator[Gateway]:
    """A gateway with a certificate, for the tests that do not break it."""
    folder = tmp_path_factory.mktemp("tls-gateway")
    with running_gateway(shared_kernel, folder, *tls_options, trusting=trusting) as gateway:
        yield gateway


@pytest.fixture(params=["plain", "tls"])
def gateway(request: pytest.FixtureRequest, kernel: KernelThread) -> Gateway:
    """The shared gateways, one after the other."""
    found: Gateway = request.getfixturevalue("shared_gateway" if request.param == "plain" else "tls_gateway")
    return found


def far_ends(gateway: Gateway, *raws: socket.socket) -> set[str]:
    """What the gateway's descriptors of these connections are called, as far as it has taken them."""
    ports = {raw.getsockname()[1] for raw in raws}
    inodes = set()
    for line in Path(f"/proc/{gateway.process.pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) in ports:  # its other end
            inodes.add(f"socket:[{fields[9]}]")
    return inodes & open_files(gateway)


def open_files(gateway: Gateway) -> set[str]:
    """What the gateway's process has descriptors of."""
    found = set()
    for path in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(path))
    return found


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("said", [b"", http_request("/version", b"", "GET")])
def test_a_descriptor_goes_with_its_client(
    own_kernel: KernelThread, tmp_path: Path, way: Way, how: str, said: bytes
) -> None:
    """A client that leaves an idle connection leaves nothing, long before the keep-alive timeout."""
    options = [*way[0], "--keep-alive-timeout", "3600"]
    with running_gateway(own_kernel, tmp_path / "g", *options, trusting=way[1]) as gateway:
        raws = [gateway.connect() for _ in range(20)]
        for raw in raws:
            raw.sendall(said)
            if said:
                read_until(raw, b"}")
        own_kernel.wait_until(lambda: len(far_ends(gateway, *raws)) == 20)
        ends = far_ends(gateway, *raws)
        for raw in raws:
            if how == "reset":
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            raw.close()
        own_kernel.wait_until(lambda: not ends & open_files(gateway))


def test_a_head_that_does_not_come_in_time(own_kernel: KernelThread, tmp_path: Path, way: Way) -> None:
    """Silence, and a head that trickles, end with the keep-alive timeout; others are served meanwhile."""
    options = [*way[0], "--keep-alive-timeout", "2"]
    with running_gateway(own_kernel, tmp_path / "g", *options, trusting=way[1]) as gateway:
        address = urlsplit(gateway.url)
        with socket.create_connection((address.hostname, address.port), PATIENCE_SECONDS) as mute:
            assert mute.recv(1) == b""  # not even a handshake came
        with gateway.connect() as silent, gateway.connect() as slow:
            slow.settimeout(0.05)
            began = time.monotonic()
            for byte in b"GET /version HTTP/1.1\r\nx-long: " + b"y" * 10_000:
                assert time.monotonic() < began + PATIENCE_SECONDS
                try:
                    slow.sendall(bytes([byte]))
                    if slow.recv(1) == b"":
                        break
                except TimeoutError:
                    pass
                except (ConnectionError, ssl.SSLEOFError):
                    break
                assert gateway.get("/version").status_code == 200
            assert silent.recv(1) == b""


def test_an_old_client(gateway: Gateway, kernel: KernelThread) -> None:
    """HTTP/1.0 gets whole and streamed answers that end with the connection, without chunks."""
    for stream in (False, True):
        with gateway.connect() as raw:
            raw.sendall(http_request(CHAT, hello(stream=stream)).replace(b"HTTP/1.1", b"HTTP/1.0"))
            head, _, body = read_until(raw, b"never").partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert body.endswith(b"data: [DONE]\n\n") if stream else json.loads(body)


def test_a_body_that_waits_to_be_asked(gateway: Gateway) -> None:
    """Expect: 100-continue is answered before the body comes."""
    request = http_request(CHAT, hello(), headers="Expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    with gateway.connect() as raw:
        raw.sendall(head + b"\r\n\r\n")
        assert read_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        raw.sendall(body)
        assert read_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


BOTH_LENGTHS = (
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\n"
)


def test_a_body_that_is_refused_is_not_asked_for(gateway: Gateway) -> None:
    """Who waits to be asked for a body that is too long is refused, and never sends it."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
    head += b"Expect: 100-continue\r\nContent-Length: 999999999\r\n\r\n"
    with gateway.connect() as raw:
        raw.sendall(head)
        answer, _, body = read_until(raw, b"never").partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.lower().count(b"connection: close") == 1
    assert json.loads(body)["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize("name", [" ", "a ", " \u00e8", "\r\nx: y", "\t"])
def test_names_of_fields_that_are_ignored(gateway: Gateway, name: str) -> None:
    """Whatever a field is called, its name fits into the header that says it was ignored."""
    answer = gateway.post(CHAT, {**hello(), name: 1})
    assert answer.status_code == 200
    assert set(answer.headers["x-llmos-ignored-params"]) <= set("?axy:")


def test_a_body_that_nobody_wants(gateway: Gateway) -> None:
    """A connection goes on behind a body that was not read, or says that it ends; its answer arrives."""
    again = http_request("/version", b"", "GET")
    with gateway.connect() as raw:
        raw.sendall(again.replace(b"Content-Length: 0", b"Content-Length: 60000"))
        assert b"connection: close" not in read_until(raw, b"}").lower()
        raw.sendall(b"y" * 59_999)
        raw.sendall(b"y" + again)
        assert read_until(raw, b"}").startswith(b"HTTP/1.1 200 ")
    for size in (b"Content-Length: 3000000", b"Transfer-Encoding: chunked"):
        with gateway.connect() as raw:
            raw.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n" + size + b"\r\n\r\n")
            raw.sendall(b"y" * 3_000_000 if size.startswith(b"C") else b"10\r\n" + b"y" * 16)
            assert b"connection: close" in read_until(raw, b"}").lower()
            assert raw.recv(1) == b""


@pytest.mark.parametrize(
    ("junk", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 100_000, 431),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (BOTH_LENGTHS, 400),
        (BOTH_LENGTHS.replace(b"Content-Length: 5", b"X: y").replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    ],
)
def test_what_is_no_http_is_told(gateway: Gateway, junk: bytes, status: int) -> None:
    """In the shape of every error, and the connection ends."""
    with gateway.connect() as raw:
        raw.sendall(junk)
        answer = read_until(raw, b"never")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    error = json.loads(body)["error"]
    assert error["code"] == "bad_request"
    assert "bytearray" not in error["message"]


def test_a_stalled_client_is_cut_at_once(own_kernel: KernelThread, tmp_path: Path, way: Way) -> None:
    """A client that takes nothing for the send timeout loses its process and its connection."""
    own_kernel.program = flood
    options = [*way[0], "--send-timeout", "0.5"]
    with running_gateway(own_kernel, tmp_path / "g", *options, trusting=way[1]) as gateway:
        with gateway.connect(receive_buffer_bytes=4096) as raw:
            raw.sendall(http_request(CHAT, hello(stream=True, logprobs=True, top_logprobs=20)))
            (end,) = own_kernel.wait_until(lambda: far_ends(gateway, raw))
            own_kernel.wait_until(lambda: own_kernel.kernel.spawned and not own_kernel.kernel.processes)
            own_kernel.wait_until(lambda: end not in open_files(gateway))


async def flood(process: Any) -> Any:
    """A program that outputs more than any buffer between us and a client holds."""
    from syscalls.sampling import TokenLogprobs

    top = TokenLogprobs(-0.5, tuple(range(20)), (-3.0,) * 20)
    while True:
        await process.emit(*b"x" * 1000, logprobs=(top,) * 1000)


# --- one connection, in this process -----------------------------------------------------------------------


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    parts=st.lists(st.tuples(st.binary(min_size=1, max_size=300_000), st.booleans()), max_size=6),
    takes=st.lists(st.integers(1, 200_000), max_size=8),
)
def test_bytes_arrive_as_they_were_written(
    way: Way, parts: list[tuple[bytes, bool]], takes: list[int]
) -> None:
    """However parts are written and taken: whole, and in order."""
    options, trusting = way
    server_side = make_server_context(options[1], options[3]) if trusting is not None else None

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        outlet = scope["extensions"][OUTLET]
        for data, is_direct in parts:
            if not is_direct:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            elif not outlet.write_nowait(data):
                await outlet.drain()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def main() -> bytes:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        client = h11.Connection(h11.CLIENT)
        content = b""
        async with trio.open_nursery() as nursery:
            raw: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
            codec = TlsCodec(server_side) if server_side is not None else None
            connection = Connection(await listeners[0].accept(), app, 10.0, codec)
            nursery.start_soon(connection.run)
            if trusting is not None:
                raw = trio.SSLStream(raw, trusting, server_hostname="127.0.0.1", https_compatible=True)
            request = h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Connection", "close")])
            await raw.send_all((client.send(request) or b"") + (client.send(h11.EndOfMessage()) or b""))
            sizes = iter(takes)
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    client.receive_data(await raw.receive_some(next(sizes, 1 << 16)))
                elif isinstance(event, h11.Data):
                    content += event.data
            await raw.aclose()
        await listeners[0].aclose()
        return content

    assert trio.run(main) == b"".join(data for data, _ in parts)
