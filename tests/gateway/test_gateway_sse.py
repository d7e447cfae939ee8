"""Event streams, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from syscalls.process import ExitStatus, Kill, Read
from syscalls.sampling import TokenLogprobs
from tests.gateway.harness import (
    PATIENCE_SECONDS,
    Gateway,
    KernelThread,
    events_of,
    hello,
    http_request,
    parse_events,
    read_until,
    running_gateway,
    say_forever,
    says,
)
from tests.scripted_kernel import END, STOPPED_BY_MODEL, ScriptedProcess

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FAMILY = "👩‍👩‍👧 日本語 é ﷽ 🇫🇷 x"


def read_chunks(raw: Any) -> list[bytes]:
    """Read a chunked response from a socket; returns its chunks as they were framed."""
    content = read_until(raw, b"0\r\n\r\n").partition(b"\r\n\r\n")[2]
    chunks = []
    while content:
        size, _, rest = content.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        chunks.append(rest[:length])
        content = rest[length + 2 :]
    return chunks


def stepwise(*tokens: int) -> Any:
    """Make a program that outputs each token only after the one before was read."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        for token in tokens:
            await process.emit(token)
            await process.wait_read()
        await process.emit(END)
        return STOPPED_BY_MODEL

    return program


def test_order_and_shape_of_chat_chunks(gateway: Gateway, kernel: KernelThread) -> None:
    """Role, content, finish, usage, done: in this order, each with the same envelope."""
    kernel.program = stepwise(*b"abc")
    response = gateway.post(CHAT, hello(stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert int(response.headers["x-llmos-pid"]) > 0
    events = events_of(response)
    envelope = {(e["id"], e["object"], e["created"], e["model"], e["system_fingerprint"]) for e in events}
    assert len(envelope) == 1
    assert next(iter(envelope))[1] == "chat.completion.chunk"
    assert events[0]["id"].startswith("chatcmpl-")
    assert isinstance(events[0]["created"], int)
    *chunks, last = events
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {"content": "c"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_no_usage_unless_asked(gateway: Gateway) -> None:
    """Without the option there is no usage chunk and no usage key."""
    events = events_of(gateway.post(CHAT, hello(stream=True)))
    assert all("usage" not in event and len(event["choices"]) == 1 for event in events)


def test_continuous_usage(gateway: Gateway, kernel: KernelThread) -> None:
    """With continuous statistics every chunk carries the count so far."""
    kernel.program = stepwise(*b"abc")
    body = hello(stream=True, stream_options={"continuous_usage_stats": True})
    events = events_of(gateway.post(CHAT, body))
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 1, 2, 3, 4]


def test_completion_chunks(gateway: Gateway, kernel: KernelThread) -> None:
    """Text completions stream text, then a finish, without a role."""
    kernel.program = stepwise(*b"ab")
    events = events_of(gateway.post(COMPLETIONS, {"prompt": "x", "stream": True}))
    assert [(e["choices"][0]["text"], e["choices"][0]["finish_reason"]) for e in events] == [
        ("a", None),
        ("b", None),
        ("", "stop"),
    ]
    assert {event["object"] for event in events} == {"text_completion"}


def test_whole_events_are_written_at_once(gateway: Gateway, kernel: KernelThread) -> None:
    """Each HTTP chunk holds whole events, and a token is sent when it comes: no buffering, no splitting."""
    kernel.program = stepwise(*b"abcdef")
    with gateway.connect() as raw:
        raw.sendall(http_request(CHAT, hello(stream=True)))
        chunks = read_chunks(raw)
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks)
    assert len(chunks) >= 7  # one for each token at least
    assert len(parse_events(b"".join(chunks))) == 8


def test_headers_come_before_the_first_token(gateway: Gateway, kernel: KernelThread) -> None:
    """The response begins when the process is admitted, not when it says something."""
    resume = kernel.make_event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        await resume.wait()
        await process.emit(ord("a"), END)
        return STOPPED_BY_MODEL

    kernel.program = program
    with gateway.connect() as raw:
        raw.sendall(http_request(CHAT, hello(stream=True)))
        assert read_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        kernel.call(resume.set)
        assert b"[DONE]" in read_until(raw, b"[DONE]")


def test_keep_alive_while_nothing_comes(own_kernel: KernelThread, tmp_path: Path) -> None:
    """A stalled prefill is bridged by comments, and the stream goes on after them."""
    resume = own_kernel.make_event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        await resume.wait()
        await process.emit(ord("a"), END)
        return STOPPED_BY_MODEL

    own_kernel.program = program
    with (
        running_gateway(own_kernel, tmp_path / "g", "--sse-ping-interval", "0.02") as gateway,
        gateway.connect() as raw,
    ):
        raw.sendall(http_request(CHAT, hello(stream=True)))
        received = b""
        while received.count(b": keep-alive\n\n") < 3:
            received += raw.recv(4096)
        own_kernel.call(resume.set)
        received += read_until(raw, b"0\r\n\r\n")
    assert b'"content":"a"' in received


def test_keep_alive_can_be_off(own_kernel: KernelThread, tmp_path: Path) -> None:
    """With -1 there are no comments however long it takes."""
    resume = own_kernel.make_event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        await resume.wait()
        return ExitStatus("stop")

    own_kernel.program = program
    options = ("--sse-ping-interval", "-1", "--send-timeout", "0.5")
    with running_gateway(own_kernel, tmp_path / "g", *options) as gateway, gateway.connect() as raw:
        raw.sendall(http_request(CHAT, hello(stream=True)))
        read_until(raw, b"\r\n\r\n")
        raw.settimeout(1.0)
        with pytest.raises(TimeoutError):
            raw.recv(1)
        own_kernel.call(resume.set)
        raw.settimeout(PATIENCE_SECONDS)
        assert b"[DONE]" in read_until(raw, b"[DONE]")


def test_error_after_200_is_an_event(gateway: Gateway, kernel: KernelThread) -> None:
    """A failure in mid-stream is told in the error shape, then done: never a bare close."""
    kernel.program = says("abc", end=ExitStatus("error", message="device lost"))
    response = gateway.post(CHAT, hello(stream=True, stream_options={"include_usage": True}))
    assert response.status_code == 200
    events = events_of(response)
    error = events[-1]["error"]
    assert set(events[-1]) == {"error"}
    assert (error["type"], error["code"], error["param"]) == ("server_error", "process_failed", None)
    assert not any(event.get("usage") for event in events[:-1])
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_characters_are_never_split(gateway: Gateway, kernel: KernelThread, path: str) -> None:
    """Emoji, CJK and combining sequences over byte tokens: deltas are whole characters."""
    body: dict[str, Any] = hello() if path == CHAT else {"prompt": "x", "max_tokens": 200}
    kernel.program = stepwise(*FAMILY.encode())
    events = events_of(gateway.post(path, {**body, "stream": True}))
    deltas = [event["choices"][0].get("delta", event["choices"][0]) for event in events]
    parts = [delta.get("content", delta.get("text", "")) for delta in deltas]
    assert "�" not in "".join(parts)
    assert "".join(parts) == FAMILY
    assert sum(map(bool, parts)) == len(FAMILY)  # one delta for each code point
    whole = gateway.post(path, body).json()["choices"][0]
    assert (whole["message"]["content"] if path == CHAT else whole["text"]) == FAMILY


def test_end_inside_a_character(gateway: Gateway, kernel: KernelThread) -> None:
    """Generation that ends inside a code point shows one replacement character, in the last content delta."""
    kernel.program = says("ab", "🙂".encode()[:2], end=ExitStatus("length"))
    events = events_of(gateway.post(CHAT, hello(stream=True)))
    assert (
        "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        == "ab\N{REPLACEMENT CHARACTER}"
    )
    assert (
        gateway.post(CHAT, hello()).json()["choices"][0]["message"]["content"]
        == "ab\N{REPLACEMENT CHARACTER}"
    )


def test_choices_interleave_and_each_is_complete(gateway: Gateway, kernel: KernelThread) -> None:
    """With n = 4 every index has its role once, its own text, one finish, and nothing after it."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say(f"choice {process.sample} seed {process.seed}")
        await process.emit(END)
        return STOPPED_BY_MODEL

    kernel.program = program
    events = events_of(gateway.post(CHAT, hello(stream=True, n=4, seed=70)))
    for index in range(4):
        rows = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert [row["delta"].get("role") for row in rows] == ["assistant"] + [None] * (len(rows) - 1)
        text = "".join(row["delta"].get("content", "") for row in rows)
        assert text == f"choice {index} seed {70 + index}"
        assert [row["finish_reason"] for row in rows] == [None] * (len(rows) - 1) + ["stop"]
    assert len(kernel.kernel.spawned) == 4


def test_slow_reader_is_not_read_for(own_kernel: KernelThread, tmp_path: Path) -> None:
    """A client that stops reading stops our reading; then its process is killed."""

    top = TokenLogprobs(-0.5, tuple(range(20)), (-3.0,) * 20)  # 2 kB of JSON for each token

    async def flood(process: ScriptedProcess) -> ExitStatus:
        await process.emit(*b"x" * 4000, logprobs=(top,) * 4000)
        return ExitStatus("length")

    own_kernel.program = flood
    with running_gateway(own_kernel, tmp_path / "g", "--send-timeout", "0.5") as gateway:
        with gateway.connect(receive_buffer_bytes=4096) as raw:
            body = hello(stream=True, max_tokens=4000, logprobs=True, top_logprobs=20)
            raw.sendall(http_request(CHAT, body))
            read_until(raw, b"\r\n\r\n")
            own_kernel.wait_until(lambda: any(isinstance(call, Kill) for call in own_kernel.kernel.calls))
            own_kernel.wait_until(lambda: not own_kernel.kernel.processes)
            (process,) = own_kernel.kernel.spawned
            reads = [call for call in own_kernel.kernel.calls if isinstance(call, Read)]
            assert max(read.offset for read in reads) < 4000
        assert gateway.get("/health").status_code == 200
        assert process.is_zombie


def test_json_is_one_line(gateway: Gateway, kernel: KernelThread) -> None:
    """Line breaks and separators in the text are escaped or harmless: each event is one line."""
    text = "a\nb\r\nc\u2028d\x00e"
    kernel.program = says(text)
    events = events_of(gateway.post(CHAT, hello(stream=True)))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == text
    assert json.dumps(events)


def test_infinite_stream_of_one_client_leaves_others_alone(gateway: Gateway, kernel: KernelThread) -> None:
    """While one request streams on, another is answered."""
    kernel.program = say_forever
    with gateway.connect() as raw:
        raw.sendall(http_request(CHAT, hello(stream=True)))
        read_until(raw, b'"content":"x')
        kernel.program = says("quick")
        answer = gateway.post(CHAT, hello()).json()
        assert answer["choices"][0]["message"]["content"] == "quick"
