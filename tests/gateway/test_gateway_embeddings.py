"""`/v1/embeddings` to the letter, against a kernel whose vectors count tokens."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import msgspec
import pytest
import trio

from shell.gateway.embedding_job import EmbeddingJob, cosine, cut_vector
from shell.gateway.replies.embeddings import EmbeddingList
from syscalls.embedding import MAX_INPUTS, Embed
from syscalls.errno import Errno, SyscallError
from syscalls.process import Spawn
from tests.gateway.harness import Gateway, KernelThread, http_request
from tests.scripted_kernel import CONTEXT, VECTOR_SIZE, VOCAB_SIZE, ScriptedProcess, count_tokens

PATH = "/v1/embeddings"


def numbers_of(text: str | list[int], *, normalise: bool = True) -> list[float]:
    """The vector that the scripted kernel makes."""
    tokens = list(text.encode()) if isinstance(text, str) else text
    return list(struct.unpack(f"<{VECTOR_SIZE}f", count_tokens(tokens, normalise=normalise)))


@pytest.mark.parametrize(
    "given",
    ["hello", ["hello"], ["hello", "world", "hello"], [1, 2, 3], [[1, 2, 3], [4]]],
)
def test_each_form_of_input(gateway: Gateway, given: Any) -> None:
    """A string, strings, token ids, lists of token ids: a vector each, in order."""
    expected = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    response = gateway.post(PATH, {"input": given})
    assert response.status_code == 200, response.text
    body = response.json()
    msgspec.convert(body, EmbeddingList)
    assert (body["object"], body["model"]) == ("list", "scripted")
    assert [row["index"] for row in body["data"]] == list(range(len(expected)))
    assert {row["object"] for row in body["data"]} == {"embedding"}
    assert [row["embedding"] for row in body["data"]] == [numbers_of(each) for each in expected]
    count = sum(map(len, expected))
    assert body["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert len(response.headers["x-llmos-pid"].split(",")) == len(expected)


def test_base64_is_the_same_numbers(gateway: Gateway) -> None:
    """Little-endian floats of 32 bits; also cut to a size that the model allows, and not normalised."""
    fields = {"input": ["hello", "x"], "encoding_format": "base64"}
    rows = gateway.post(PATH, fields).json()["data"]
    for row, text in zip(rows, fields["input"], strict=True):
        assert base64.b64decode(row["embedding"]) == count_tokens(text.encode(), normalise=True)
    (row,) = gateway.post(PATH, {**fields, "input": "hello", "normalize": False}).json()["data"]
    assert base64.b64decode(row["embedding"]) == count_tokens(b"hello", normalise=False)
    cut = gateway.post(PATH, {"input": "hello", "dimensions": 8}).json()["data"][0]["embedding"]
    raw = numbers_of("hello", normalise=False)[:8]
    assert cut == pytest.approx(cut_vector(raw, 8, is_normal=True), abs=1e-6)
    assert cosine(cut, cut) == pytest.approx(1, abs=1e-6)
    (row,) = gateway.post(PATH, {**fields, "input": "hello", "dimensions": 8}).json()["data"]
    assert struct.unpack("<8f", base64.b64decode(row["embedding"])) == tuple(cut)
    raw_cut = gateway.post(PATH, {"input": "hello", "dimensions": 8, "normalize": False}).json()
    assert raw_cut["data"][0]["embedding"] == raw
    whole = gateway.post(PATH, {"input": "hello", "dimensions": VECTOR_SIZE}).json()
    assert whole["data"][0]["embedding"] == numbers_of("hello")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input[1]"),
        ({"input": [[1], []]}, "invalid_value", "input[1]"),
        ({"input": ["a", 1]}, "invalid_type", "input"),
        ({"input": [VOCAB_SIZE]}, "invalid_value", "input"),
        ({"input": 5}, "invalid_type", "input"),
        ({"input": ["x"] * 2049}, "invalid_value", "input"),
        ({"input": "x" * (CONTEXT + 1)}, "context_length_exceeded", "input"),
        ({"input": "x", "dimensions": 4}, "unsupported_parameter", "dimensions"),
        ({"input": "x", "dimensions": 17}, "unsupported_parameter", "dimensions"),
        ({"input": "x", "dimensions": 0}, "invalid_value", "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"input": "x", "pooling": "cls"}, "invalid_value", "pooling"),
        ({"input": "x", "truncate_prompt_tokens": 0}, "invalid_value", "truncate_prompt_tokens"),
        ({"input": "x", "messages": [{"role": "user"}]}, "unsupported_parameter", "messages"),
        ({"input": "x", "embed_dtype": "int8"}, "unsupported_parameter", "embed_dtype"),
        ({"input": "x", "rid": "a", "request_id": "b"}, "invalid_value", "rid"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    gateway: Gateway, kernel: KernelThread, body: dict[str, Any], code: str, param: str
) -> None:
    """By name, before any process is made."""
    response = gateway.post(PATH, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert not kernel.kernel.spawned


def test_the_message_of_the_context_is_the_one_that_clients_parse(gateway: Gateway) -> None:
    """To the letter, with nothing for a completion."""
    message = gateway.post(PATH, {"input": "x" * 5000}).json()["error"]["message"]
    assert message.startswith(
        f"This model's maximum context length is {CONTEXT} tokens. However, you requested 5000 tokens "
        "(5000 in the messages, 0 in the completion)."
    )


@pytest.mark.parametrize(("limit", "kept"), [(-1, CONTEXT), (7, 7)])
def test_inputs_may_be_cut(gateway: Gateway, limit: int, kept: int) -> None:
    """At their end, whether text or tokens."""
    text = "".join(chr(97 + i % 26) for i in range(5000))
    for given in (text, list(text.encode())):
        body = gateway.post(PATH, {"input": given, "truncate_prompt_tokens": limit}).json()
        assert body["usage"]["prompt_tokens"] == kept
        assert body["data"][0]["embedding"] == numbers_of(text[:kept])


def test_what_the_kernel_is_told(gateway: Gateway, kernel: KernelThread) -> None:
    """Ours are its words; what we do not know is listed; null is absent."""
    response = gateway.post(
        PATH,
        {
            "input": "hello", "model": "scripted", "pooling": "mean", "priority": 3, "deadline_ms": 500,
            "cache_salt": "s", "pin_ttl_s": 60, "rid": "mine-1", "user": "u", "input_type": "query",
            "dimensions": None, "normalize": False, "messages": None,
        },
    )  # fmt: skip
    assert response.status_code == 200, response.text
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["x-llmos-ignored-params"] == "input_type"
    (call,) = [call for call in kernel.kernel.calls if isinstance(call, Embed)]
    assert call == Embed((tuple(b"hello"),), "mean", False, "scripted", True, -3, "mine-1", 0.5, "s", 60.0)


def test_many_inputs_go_in_calls_of_a_bounded_size(gateway: Gateway, kernel: KernelThread) -> None:
    """As many as the kernel takes at once; the vectors come in order."""
    texts = [f"text {index}" for index in range(300)]
    rows = gateway.post(PATH, {"input": texts}).json()["data"]
    assert [row["embedding"] for row in rows] == [numbers_of(text) for text in texts]
    calls = [call for call in kernel.kernel.calls if isinstance(call, Embed)]
    assert sorted(len(call.inputs) for call in calls) == [44, MAX_INPUTS, MAX_INPUTS]


def test_calls_are_cut_by_tokens_too() -> None:
    """Long inputs do not make a frame that is too large; every input is in one call, in order."""
    for lengths in ([1], [1 << 18, 1, 1], [100_000] * 7, [300_000, 5, 300_000], [1] * 129):
        inputs = tuple((1,) * length for length in lengths)
        job = EmbeddingJob(model=None, inputs=inputs, options={})
        calls = list(job.calls())
        assert [index for call in calls for index in call] == list(range(len(lengths)))
        assert all(call and len(call) <= MAX_INPUTS for call in calls)
        assert all(len(call) == 1 or sum(lengths[index] for index in call) <= 1 << 18 for call in calls)


def test_a_model_that_makes_no_vectors(gateway: Gateway, kernel: KernelThread) -> None:
    """400 by name; and one that only makes vectors generates nothing."""
    before = kernel.kernel.models
    try:
        for changed, path, body in (
            ({"embedding": None}, PATH, {"input": "x"}),
            ({"generates": False}, "/v1/completions", {"prompt": "x"}),
            ({"generates": False}, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ):
            kernel.kernel.models = [msgspec.structs.replace(before[0], name="other", **changed)]
            gateway.get("/v1/models")  # which asks the kernel
            response = gateway.post(path, {**body, "model": "other"})
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (
                400, "unsupported_parameter", "model",
            )  # fmt: skip
    finally:
        kernel.kernel.models = before
        assert gateway.get("/v1/models").status_code == 200


def test_an_encoder_beside_a_chat_model_needs_no_name(gateway: Gateway, kernel: KernelThread) -> None:
    """Without a model the one that only embeds makes vectors, and the other one text."""
    before = kernel.kernel.models
    encoder = msgspec.structs.replace(before[0], name="encoder", generates=False)
    try:
        kernel.kernel.models = [*before, encoder]
        assert len(gateway.get("/v1/models").json()["data"]) == 2
        assert gateway.post(PATH, {"input": "x"}).json()["model"] == "encoder"
        assert gateway.post(PATH, {"input": "x", "model": "scripted"}).json()["model"] == "scripted"
        assert gateway.post("/v1/completions", {"prompt": "x"}).json()["model"] == "scripted"
        calls = [call.model for call in kernel.kernel.calls if isinstance(call, Embed | Spawn)]
        assert calls == ["encoder", "scripted", "scripted"]
    finally:
        kernel.kernel.models = before
        assert gateway.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("errno", "status"),
    [(Errno.EAGAIN, 503), (Errno.ENOMEM, 400), (Errno.EPERM, 403), (Errno.ESHUTDOWN, 503)],
)
def test_the_kernel_refuses(gateway: Gateway, kernel: KernelThread, errno: Errno, status: int) -> None:
    """The same answers as for chats."""
    kernel.kernel.refusals[Embed] = SyscallError(errno, "because")
    assert gateway.post(PATH, {"input": ["a", "b"]}).status_code == status


def test_what_if_one_process_is_killed(gateway: Gateway, kernel: KernelThread) -> None:
    """Its request fails by name, and the others of the request go with it."""

    async def kill_the_second(process: ScriptedProcess) -> None:
        if process.tokens == [98]:
            kernel.kernel.kill(process)
        await trio.sleep(0.05)

    kernel.kernel.embedding = kill_the_second
    response = gateway.post(PATH, {"input": ["a", "b", "c"]})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "process_killed")


def test_what_if_the_client_disconnects(gateway: Gateway, kernel: KernelThread) -> None:
    """Its processes are killed; the fixture waits for that."""

    async def sleep(process: ScriptedProcess) -> None:
        await trio.sleep_forever()

    kernel.kernel.embedding = sleep
    with gateway.connect() as raw:
        raw.sendall(http_request(PATH, {"input": ["a", "b"], "rid": "hang-up"}))
        kernel.wait_until(lambda: len(kernel.kernel.processes) == 2)
        listed = gateway.get("/v1/requests").json()
        assert json.dumps(listed).count("hang-up") >= 1
    kernel.wait_until(lambda: not kernel.kernel.processes)
    lines = kernel.wait_until(
        lambda: [line for line in gateway.log_lines() if line.get("request_id") == "hang-up"]
    )
    assert lines[0]["status"] == 499
