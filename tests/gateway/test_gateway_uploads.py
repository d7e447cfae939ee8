"""Request bodies: bounded in sum, not for ever on their way, and no harm to others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.config import ConfigError, load_config
from shell.gateway.body_file import LARGE_BYTES
from shell.gateway.errors import ApiError
from shell.gateway.uploads import Uploads
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


def refusal(check: Callable[..., None], *arguments: object) -> int | None:
    """Return the status that something is refused with; None: it is not."""
    try:
        check(*arguments)
    except ApiError as error:
        return error.status
    return None


@given(
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60), st.booleans())),
    limit=st.integers(50, 120),
)
def test_sum_is_never_over_the_limit(steps: list[tuple[int, int, bool]], limit: int) -> None:
    """Against a plain table of who holds what: refused exactly when the sum would be too large."""
    uploads = Uploads(50, limit, 1.0, 1, 1)
    held = dict.fromkeys(range(5), 0)
    for who, num_bytes, is_end in steps:
        key = who or None  # who has no key may have the whole
        if is_end:
            uploads.release(held[who], key)
            held[who] = 0
            continue
        fits = sum(held.values()) + num_bytes <= limit
        is_mine_full = who > 0 and held[who] + num_bytes > max(50, limit // 2)
        status = 429 if is_mine_full else None if fits else 503
        promised = refusal(uploads.check_promise, num_bytes, key)
        assert promised == (413 if num_bytes > 50 else status)
        assert refusal(uploads.reserve, num_bytes, key) == status
        if status is None:
            held[who] += num_bytes
        assert uploads.statistics().num_bytes == sum(held.values()) <= limit


@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40),
    limits=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_number_of_large_bodies_is_bounded(steps: list[tuple[int, bool]], limits: tuple[int, int]) -> None:
    """Against plain counts: of all, and of each key; a promise is refused when the body would be."""
    uploads = Uploads(LARGE_BYTES + 1, 1 << 30, 1.0, *limits)
    held = dict.fromkeys(range(4), 0)
    for who, is_end in steps:
        key = who or None
        if is_end:
            if held[who]:
                uploads.leave_large(key)
                held[who] -= 1
            continue
        is_mine_full = who > 0 and held[who] >= limits[1]
        status = 429 if is_mine_full else 503 if sum(held.values()) >= limits[0] else None
        assert refusal(uploads.check_promise, LARGE_BYTES + 1, key) == status
        assert refusal(uploads.check_promise, LARGE_BYTES, key) is None
        assert refusal(uploads.enter_large, key) == status
        held[who] += status is None
        assert uploads.statistics().num_large == sum(held.values()) <= limits[0]


def head(num_bytes: int) -> bytes:
    """The head of a request that promises so many bytes."""
    return f"POST {CHAT} HTTP/1.1\r\nHost: t\r\nContent-Length: {num_bytes}\r\n\r\n".encode()


def test_bodies_are_bounded_in_sum(own_kernel: KernelThread, tmp_path: Path) -> None:
    """With two halves of bodies on their way a third is refused unread; small ones pass; then all is free."""
    options = ("--max-body-bytes", "1000000", "--max-uploads-bytes", "1000000")
    with running_gateway(own_kernel, tmp_path / "g", *options) as gateway:
        with gateway.connect() as first, gateway.connect() as second:
            for raw in (first, second):
                raw.sendall(head(450_001) + b" " * 450_000)

            def refused() -> bool:
                with gateway.connect() as third:
                    third.sendall(head(400_000))  # and not a byte of the body
                    third.settimeout(4)  # the refusal comes when no more of the body does, after two seconds
                    try:
                        answer = read_until(third, b"}}")
                    except TimeoutError:  # it waits for the body: the other bytes are not all there yet
                        return False
                return answer.startswith(b"HTTP/1.1 503") and b'"code":"overloaded"' in answer

            own_kernel.wait_until(refused)
            assert gateway.post(CHAT, hello()).status_code == 200
        big = hello(metadata={"filler": "x" * 900_000})
        own_kernel.wait_until(lambda: gateway.post(CHAT, big).status_code == 200)
        for _ in range(3):  # and what a request held is given back at its end
            assert gateway.post(CHAT, big).status_code == 200


def test_promises_alone_keep_nobody_out(own_kernel: KernelThread, tmp_path: Path) -> None:
    """Clients that promise the largest body and send nothing of it hold nothing."""
    options = ("--max-body-bytes", "1000000", "--max-uploads-bytes", "1000000")
    with running_gateway(own_kernel, tmp_path / "g", *options) as gateway:
        liars = [gateway.connect() for _ in range(20)]
        for raw in liars:
            raw.sendall(head(1_000_000))
        assert gateway.post(CHAT, hello(metadata={"filler": "x" * 900_000})).status_code == 200
        for raw in liars:
            raw.close()


def _trickle(raw: socket.socket, data: bytes, stop: threading.Event) -> None:
    for byte in data:
        if stop.wait(0.05):
            return
        try:
            raw.send(bytes([byte]))
        except OSError:
            return


@pytest.mark.parametrize("where", ["headers", "body"])
def test_what_trickles_runs_out_of_time(own_kernel: KernelThread, tmp_path: Path, where: str) -> None:
    """A byte now and then does not keep a connection: a body gets its 408, headers are cut off."""
    request = http_request(CHAT, b'{"messages": "' + b"x" * 5000)
    begin = request.index(b"\r\n\r\n") + 4 if where == "body" else 20
    # The other time is longer than a busy machine keeps us from going on.
    body, head = ("1", "60") if where == "body" else ("60", "2")
    options = ("--body-timeout", body, "--keep-alive-timeout", head)
    with running_gateway(own_kernel, tmp_path / "g", *options) as gateway:
        stop = threading.Event()
        with gateway.connect() as raw:
            raw.sendall(request[:begin])
            thread = threading.Thread(target=_trickle, args=(raw, b"x" * 100_000, stop))
            thread.start()
            try:
                answer = read_until(raw, b"}}") if where == "body" else _read_to_the_end(raw)
            finally:
                stop.set()
                thread.join()
        if where == "body":
            assert answer.startswith(b"HTTP/1.1 408")
            assert b'"code":"request_timeout"' in answer
        else:
            assert answer == b""
        assert gateway.post(CHAT, hello()).status_code == 200
        assert len(own_kernel.kernel.spawned) == 1


def _read_to_the_end(raw: socket.socket) -> bytes:
    try:
        return read_until(raw, b"}}")
    except ConnectionResetError:
        return b""


def test_largest_body_does_not_hurt_others(gateway: Gateway, kernel: KernelThread) -> None:
    """While 64 MiB arrive, others are answered; the large one is, too, with what is wrong with it."""
    body = b'{"messages": [{"role": "user", "content": "hi"}], "padding": "' + b"x" * (4 << 20) + b'"'
    request = http_request(CHAT, body.ljust((64 << 20) - 1) + b"}")
    answers: list[bytes] = []
    is_halfway, may_go_on = threading.Event(), threading.Event()

    def upload() -> None:
        with gateway.connect() as raw:
            raw.sendall(request[: len(request) // 2])
            is_halfway.set()
            may_go_on.wait(PATIENCE_SECONDS)
            raw.sendall(request[len(request) // 2 :])
            answers.append(read_until(raw, b"}}"))

    thread = threading.Thread(target=upload)
    thread.start()
    assert is_halfway.wait(PATIENCE_SECONDS)
    assert gateway.post(CHAT, hello()).status_code == 200
    may_go_on.set()
    while not answers and thread.is_alive():
        assert gateway.post(CHAT, hello()).status_code == 200
    thread.join()
    assert answers[0].startswith(b"HTTP/1.1 200")
    assert b"x-llmos-ignored-params: padding" in answers[0]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_text_that_can_never_fit_is_not_encoded(gateway: Gateway, path: str) -> None:
    """60 MiB of it are refused for their length, and do not cost the memory of their tokens."""
    text = "a" * (60 << 20)
    body = {"prompt": text} if path != CHAT else {"messages": [{"role": "user", "content": text}]}
    answer = gateway.post(path, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kib < 384 << 10


def test_sum_below_one_body_is_refused() -> None:
    """A sum that the largest permitted body does not fit in would be a limit of its own."""
    with pytest.raises(ConfigError, match="max_uploads_mib must be at least max_body_mib, 64"):
        load_config(None, {"max_uploads_mib": 63})
