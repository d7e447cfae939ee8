"""A small client of an OpenAI-compatible server: streams one completion and notes when tokens come."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import SplitResult, urlsplit

import h11
import msgspec
import trio

from llmos.bench.ask import Style, path_at, tokens_of
from llmos.errors import LlmosError

RECEIVE_BYTES = 64 << 10
MAX_ERROR_BYTES = 500  # of a refusal that are told
PORTS = {"http": 80, "https": 443}


COMPLETIONS = Style()


class RequestFailed(LlmosError):
    """The server answered with an error, or hung up; the message holds its words."""

    def __init__(self, message: str, kind: str = "error in the stream") -> None:
        super().__init__(message)
        self.kind = kind  # by which failures are counted, like "status 429"


class StreamTimes(msgspec.Struct):
    """One streamed completion."""

    arrivals: list[float]  # perf_counter seconds, one for each token
    num_tokens: int  # by the server's own count
    num_prompt_tokens: int = 0  # by the server's own count; 0: it says nothing


async def _connect(url: str, scheme: str, host: str, port: int) -> trio.abc.Stream:
    try:
        if scheme == "http":
            return await trio.open_tcp_stream(host, port)
        secure = await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)
    except OSError as error:
        raise RequestFailed(f"nobody answers at {url}: {error}", "no connection") from None
    try:
        await secure.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(secure)
        if isinstance(error, trio.BrokenResourceError):
            raise RequestFailed(f"no TLS with {url}: {error.__cause__ or error}", "no connection") from None
        raise
    return secure


async def _exchange(
    url: str, method: str, path: str, body: bytes, api_key: str | None
) -> tuple[trio.abc.Stream, h11.Connection]:
    address: SplitResult = urlsplit(url)
    if address.scheme not in PORTS or not address.hostname:
        raise RequestFailed(f"{url} is not an http:// or https:// address", "no connection")
    stream = await _connect(url, address.scheme, address.hostname, address.port or PORTS[address.scheme])
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", address.netloc), ("Content-Type", "application/json"), ("Connection", "close")]
    headers.append(("Content-Length", str(len(body))))
    if api_key:
        headers.append(("Authorization", f"Bearer {api_key}"))
    request = h11.Request(method=method, target=path_at(address, path), headers=headers)
    data = (connection.send(request) or b"") + (connection.send(h11.Data(data=body)) or b"")
    try:
        await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.BrokenResourceError):
            raise RequestFailed(f"{url}{path}: the server hung up", "hung up") from None
        raise
    return stream, connection


async def _next_event(stream: trio.abc.Stream, connection: h11.Connection) -> Any:
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(RECEIVE_BYTES)))
    except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
        raise RequestFailed(f"the server hung up: {error}", "hung up") from None
    return event


async def fetch(url: str, path: str, api_key: str | None) -> bytes:
    """GET a document. Raises RequestFailed."""
    stream, connection = await _exchange(url, "GET", path, b"", api_key)
    async with stream:
        status, received = 0, b""
        while not isinstance(event := await _next_event(stream, connection), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                received += bytes(event.data)
            elif isinstance(event, h11.ConnectionClosed):
                raise RequestFailed(f"{url}{path}: the server hung up", "hung up")
        if status != 200:
            raise _refusal(f"{url}{path}", status, received)
        return received


def _refusal(url: str, status: int, body: bytes) -> RequestFailed:
    text = body[:MAX_ERROR_BYTES].decode(errors="replace").strip()
    return RequestFailed(f"{url}: status {status}: {text}", f"status {status}")


async def stream_completion(
    url: str, model: str | None, prompt: list[int] | str, num_tokens: int, api_key: str | None = None,
    style: Style = COMPLETIONS,
) -> StreamTimes:  # fmt: skip
    """Stream a greedy completion, end tokens ignored; `model` None is the server's default.

    A server may put several tokens into one event, and may hold text back; events that carry text or token
    ids count as arrivals, and where the server's own count is higher, the rest arrived with the last event.

    Raises:
        RequestFailed.
    """
    body = style.body(model, prompt, num_tokens)
    stream, connection = await _exchange(url, "POST", style.path, body, api_key)
    arrivals: list[float] = []
    counted = num_prompt_tokens = status = 0
    pending = b""
    async with stream:
        while not isinstance(event := await _next_event(stream, connection), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            if isinstance(event, h11.ConnectionClosed):
                raise RequestFailed(f"{url}: the server hung up in mid-stream", "hung up")
            if not isinstance(event, h11.Data):
                continue
            if status != 200:
                pending += bytes(event.data)
                continue
            now = time.perf_counter()
            *events, pending = (pending + bytes(event.data)).replace(b"\r\n", b"\n").split(b"\n\n")
            for line in events:
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                chunk = msgspec.json.decode(data)
                if "error" in chunk:
                    raise RequestFailed(f"{url}: {chunk['error']}")
                for choice in chunk["choices"]:
                    arrivals += [now] * tokens_of(choice)
                if chunk.get("usage"):
                    counted = chunk["usage"]["completion_tokens"]
                    num_prompt_tokens = chunk["usage"]["prompt_tokens"]
    if status != 200:
        raise _refusal(url, status, pending)
    num_generated = counted or len(arrivals)
    if not arrivals:
        raise RequestFailed(f"{url}: no token came", "no token")
    arrivals = arrivals[:num_generated] + [arrivals[-1]] * (num_generated - len(arrivals))
    return StreamTimes(arrivals, num_generated, num_prompt_tokens)
