"""Large bodies at a real gateway: read like small ones, bounded in number, and nothing left of them."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell.gateway import embedding_job, prompt_length
from shell.gateway.body_file import LARGE_BYTES
from shell.gateway.errors import ApiError
from tests.gateway.harness import Gateway, KernelThread, hello, http_request, read_until, running_gateway
from tests.gateway.test_body_reader import is_alive
from tests.gateway.test_gateway_load import num_open_files, resident_kib
from tests.gateway.test_gateway_uploads import CHAT, head

PICTURE = {"type": "image_url", "image_url": {"url": "@"}}
KEYS = {"key-ann": "ann", "key-bob": "bob"}


def body_processes(gateway: Gateway) -> list[int]:
    """The pids of the gateway's children that decode bodies."""
    found = []
    for children in Path(f"/proc/{gateway.process.pid}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
                if b"shell.gateway.body_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
    return found


def num_body_files(gateway: Gateway) -> int:
    """How many bodies the gateway has in files."""
    num = 0
    for link in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            num += "llmos-body" in os.readlink(link)
    return num


def test_a_large_body_is_read_like_a_small_one(gateway: Gateway, kernel: KernelThread) -> None:
    """Text and token ids come through the other process as they were sent."""
    text = "grüße, Welt " * 30_000
    small = gateway.post("/tokenize", {"prompt": "grüße, Welt "}).json()["tokens"]
    large = gateway.post("/tokenize", {"prompt": text, "unknown": None, "note": ["x"]})
    assert large.json()["count"] == len(large.json()["tokens"]) >= 30_000 * (len(small) - 2)
    assert large.headers["x-llmos-ignored-params"] == "note"  # and a null counts as absent
    again = gateway.post("/detokenize", {"tokens": large.json()["tokens"], "skip_special_tokens": True})
    assert again.json()["prompt"] == text
    (process,) = body_processes(gateway)
    filled = hello(metadata={"filler": "x" * LARGE_BYTES})
    assert gateway.post(CHAT, filled).json()["choices"][0]["message"]["content"] == "hello"
    assert body_processes(gateway) == [process]


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "@"}]}, "context_length_exceeded", "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "@"}]}]},
         "context_length_exceeded", "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [PICTURE]}]},
         "unsupported_parameter", "messages[0].content[0]"),
        (CHAT, {"messages": [{"role": "user", "content": "@"}], "truncate_prompt_tokens": 5},
         "invalid_value", "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": "@"}], "model": "nobody"},
         "model_not_found", "model"),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "stop": "@"}, "invalid_value", "stop"),
        ("/v1/completions", {"prompt": ["a", "@"]}, "context_length_exceeded", "prompt"),
        ("/v1/responses", {"input": "@"}, "context_length_exceeded", "input"),
        ("/infill", {"input_suffix": "@"}, "context_length_exceeded", "input_suffix"),
        ("/tokenize", {"content": "@"}, "invalid_value", "content"),
        ("/v1/embeddings", {"input": ["a", "@"]}, "invalid_value", "input[1]"),
        ("/v1/rerank", {"query": "a", "documents": [{"text": "@"}]}, "invalid_value", "documents[0].text"),
        ("/v1/score", {"text_1": "@", "text_2": "a"}, "invalid_value", "text_1"),
        ("/abort_request", {"rid": "@"}, "invalid_value", "rid"),
    ],
)  # fmt: skip
def test_what_no_model_takes_is_refused_by_name(
    gateway: Gateway, kernel: KernelThread, path: str, body: object, code: str, param: str
) -> None:
    """A text of more than 4 Mi characters, wherever it is: with the field, and the number."""
    size = (4 << 20) + 1
    raw = json.dumps(body).replace("@", "a" * size).encode()
    with gateway.connect() as client:
        client.sendall(http_request(path, raw))
        answer = read_until(client, b"}}")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert code != "invalid_value" or (str(size) in error["message"] and str(4 << 20) in error["message"])


def test_too_many_messages_are_refused(gateway: Gateway, kernel: KernelThread) -> None:
    """To check one takes microseconds, and a body has room for two million."""
    messages = [{"role": "user", "content": "a"}] * 8193
    answer = gateway.post(CHAT, {"messages": messages})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    assert "8193 entries; the limit is 8192" in answer.json()["error"]["message"]


def begin_large(gateway: Gateway, key: str = "") -> socket.socket:
    """Send a large body but for its end."""
    raw = gateway.connect()
    authorization = f"Authorization: Bearer {key}\r\n".encode() if key else b""
    begin = head(LARGE_BYTES + 1000).replace(b"Host: t\r\n", b"Host: t\r\n" + authorization)
    raw.sendall(begin + b" " * (LARGE_BYTES + 900))
    return raw


def test_large_bodies_are_bounded_in_number(own_kernel: KernelThread, tmp_path: Path) -> None:
    """Two of two are on their way: a third gets a 503, small ones pass; a place comes back."""
    with running_gateway(own_kernel, tmp_path / "g", "--max-large-bodies", "2") as gateway:
        first, second = begin_large(gateway), begin_large(gateway)
        own_kernel.wait_until(lambda: num_body_files(gateway) == 2)
        large = hello(metadata={"filler": "x" * LARGE_BYTES})
        refused = gateway.post(CHAT, large)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert "2 bodies of more than 262144 bytes" in refused.json()["error"]["message"]
        assert gateway.post(CHAT, hello()).status_code == 200
        first.close()
        own_kernel.wait_until(lambda: num_body_files(gateway) == 1)
        assert gateway.post(CHAT, large).status_code == 200
        second.close()
        own_kernel.wait_until(lambda: num_body_files(gateway) == 0)


def test_one_key_does_not_keep_out_another(tmp_path: Path) -> None:
    """A key that has as many large bodies as a key may gets a 429; the other is served."""
    options = ("--max-large-bodies-per-key", "2")
    with (
        KernelThread(tmp_path / "kernel", keys=KEYS) as kernel,
        running_gateway(kernel, tmp_path / "g", *options, wait=False) as gateway,
    ):
        large = hello(metadata={"filler": "x" * LARGE_BYTES})
        ann, bob = ({"Authorization": f"Bearer key-{name}"} for name in ("ann", "bob"))
        kernel.wait_until(lambda: gateway.post(CHAT, hello(), headers=ann).status_code == 200)
        held = [begin_large(gateway, "key-ann") for _ in range(2)]
        kernel.wait_until(lambda: num_body_files(gateway) == 2)
        refused = gateway.post(CHAT, large, headers=ann)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "1000")
        assert "a key's limit" in error["message"]
        assert gateway.post(CHAT, large, headers=bob).status_code == 200
        for raw in held:
            raw.close()
        kernel.wait_until(lambda: gateway.post(CHAT, large, headers=ann).status_code == 200)


def test_memory_comes_back(own_kernel: KernelThread, tmp_path: Path) -> None:
    """After 60 MiB, six times, two at once, some given up on the way: the gateway is as large as before."""
    body = b'{"messages": [{"role": "user", "content": "' + b"x" * (60 << 20) + b'"}]}'
    with running_gateway(own_kernel, tmp_path / "g") as gateway:
        assert gateway.post(CHAT, hello(metadata={"filler": "x" * LARGE_BYTES})).status_code == 200
        memory, num_files = resident_kib(gateway), num_open_files(gateway)
        for _ in range(3):
            with gateway.connect() as first, gateway.connect() as second:
                first.sendall(head(len(body)) + body[: 30 << 20])
                second.sendall(head(len(body)) + body)
                assert b"context_length_exceeded" in read_until(second, b"}}")
        own_kernel.wait_until(lambda: num_body_files(gateway) == 0)
        own_kernel.wait_until(lambda: num_open_files(gateway) <= num_files)
        assert resident_kib(gateway) < memory + 16 * 1024
        (process,) = body_processes(gateway)
        status = Path(f"/proc/{process}/status").read_text()
        resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
        assert resident < 128 << 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_goes_with_the_gateway(
    own_kernel: KernelThread, tmp_path: Path, number: signal.Signals
) -> None:
    """However the gateway ends."""
    with running_gateway(own_kernel, tmp_path / "g") as gateway:
        assert gateway.post(CHAT, hello(metadata={"filler": "x" * LARGE_BYTES})).status_code == 200
        (process,) = body_processes(gateway)
        gateway.process.send_signal(number)
        gateway.process.wait(60)
        own_kernel.wait_until(lambda: not is_alive(process))


@given(
    given_texts=st.lists(
        st.integers(0, 12).map("a".__mul__)
        | st.tuples(st.integers(0, 7), st.integers(0, 7)).map(lambda sizes: ("a" * sizes[0], "b" * sizes[1]))
        | st.lists(st.integers(0, 9), max_size=30),
        max_size=6,
    )
)
def test_inputs_are_bounded_each_and_in_sum(given_texts: list[str | tuple[str, str] | list[int]]) -> None:
    """Against a plain sum: the first that is too long is named, else the field if all are too much."""
    sizes = [len("".join(each)) if isinstance(each, tuple) else len(each) for each in given_texts]
    too_long = [
        f"input[{index}]"
        for index, (size, each) in enumerate(zip(sizes, given_texts, strict=True))
        if size > 10 and not isinstance(each, list)
    ]
    expected = too_long[0] if too_long else "input" if sum(sizes) > 30 else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_length, "MAX_ENCODED_CHARACTERS", 10)
        patch.setattr(embedding_job, "MAX_BODY_CHARACTERS", 30)
        names = [f"input[{index}]" for index in range(len(given_texts))]
        try:
            total = embedding_job.check_texts(given_texts, names)
        except ApiError as error:
            found = error.param
        else:
            found = None
            assert total == sum(sizes)
    assert found == expected
