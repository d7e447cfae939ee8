"""Every refusal has the one shape, the right status, code and param, and never an HTML page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from shell.gateway.chat import CHAT_FIELDS
from shell.gateway.completions import COMPLETION_FIELDS
from shell.gateway.fields import FieldTable
from shell.gateway.prompt_length import MAX_ENCODED_CHARACTERS, check_encoded
from shell.gateway.response_input import RESPONSE_FIELDS
from shell.gateway.tokenize import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.process import ExitStatus, Spawn
from tests.gateway.harness import (
    PATIENCE_SECONDS,
    Gateway,
    KernelThread,
    hello,
    http_request,
    read_until,
    running_gateway,
    says,
)
from tests.scripted_kernel import CONTEXT, VOCAB_SIZE


def function(name: str, **more: Any) -> dict[str, Any]:
    """A tool of a body."""
    return {"type": "function", "function": {"name": name, **more}}


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def check_error(response: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """Check the shape and the fields of an error; return the error object."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert (error["code"], error["param"]) == (code, param), error
    return error


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        (CHAT, {}, "missing_required_parameter", "messages"),
        (CHAT, {"messages": None}, "missing_required_parameter", "messages"),
        (CHAT, {"messages": []}, "invalid_value", "messages"),
        (CHAT, {"messages": "hi"}, "invalid_type", "messages"),
        (CHAT, {"messages": [3]}, "invalid_type", "messages[0]"),
        (CHAT, {"messages": [{"content": "x"}]}, "missing_required_parameter", "messages[0].role"),
        (CHAT, {"messages": [{"role": "pope", "content": "x"}]}, "invalid_value", "messages[0].role"),
        (CHAT, {"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}
                ]
            },
            "unsupported_parameter",
            "messages[0].content[1]",
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
            "unsupported_parameter",
            "messages[0].function_call",
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
            "unsupported_parameter",
            "messages[0].audio",
        ),
        (CHAT, hello(n=0), "invalid_value", "n"),
        (CHAT, hello(n=129), "invalid_value", "n"),
        (CHAT, hello(n="2"), "invalid_type", "n"),
        (CHAT, hello(temperature=2.1), "invalid_value", "temperature"),
        (CHAT, hello(temperature="hot"), "invalid_type", "temperature"),
        (CHAT, hello(top_p=0), "invalid_value", "top_p"),
        (CHAT, hello(frequency_penalty=-3), "invalid_value", "frequency_penalty"),
        (CHAT, hello(max_tokens=0), "invalid_value", "max_tokens"),
        (CHAT, hello(max_completion_tokens=0), "invalid_value", "max_completion_tokens"),
        (CHAT, hello(seed=2**63), "invalid_value", "seed"),
        (CHAT, hello(stop=[""]), "invalid_value", "stop[0]"),
        (CHAT, hello(stop=["x"] * 33), "invalid_value", "stop"),
        (CHAT, hello(logit_bias={"5": 101}), "invalid_value", "logit_bias"),
        (CHAT, hello(logit_bias={"x": 1}), "invalid_value", "logit_bias"),
        (CHAT, hello(logit_bias={str(VOCAB_SIZE): 1}), "invalid_value", "logit_bias"),
        (CHAT, hello(top_logprobs=2), "invalid_value", "top_logprobs"),
        (CHAT, hello(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
        (CHAT, hello(stream_options={"include_usage": True}), "invalid_value", "stream_options"),
        (CHAT, hello(repetition_penalty=1.1, repeat_penalty=1.2), "invalid_value", "repeat_penalty"),
        (CHAT, hello(min_tokens=9, max_tokens=3), "invalid_value", "min_tokens"),
        (CHAT, hello(continue_final_message=True), "invalid_value", "continue_final_message"),
        (
            CHAT,
            hello(chat_template_kwargs={"messages": []}),
            "invalid_value",
            "chat_template_kwargs.messages",
        ),
        (CHAT, hello(tools=[{"type": "function"}]), "missing_required_parameter", "tools[0].function"),
        (CHAT, hello(tools=[{"type": "web_search"}]), "unsupported_parameter", "tools[0].type"),
        (
            CHAT,
            hello(tools=[{"type": "function", "function": {}}]),
            "missing_required_parameter",
            "tools[0].function.name",
        ),
        (CHAT, hello(tools=[function("a b")]), "invalid_value", "tools[0].function.name"),
        (CHAT, hello(tools=[function("f"), function("f")]), "invalid_value", "tools[1].function.name"),
        (CHAT, hello(tools=[function("f", parameters=[])]), "invalid_type", "tools[0].function.parameters"),
        (CHAT, hello(tool_choice="required"), "invalid_value", "tool_choice"),
        (CHAT, hello(tools=[function("f")], tool_choice="any"), "invalid_value", "tool_choice"),
        (
            CHAT,
            hello(tools=[function("f")], tool_choice={"type": "function", "function": {"name": "g"}}),
            "invalid_value",
            "tool_choice.function.name",
        ),
        (
            CHAT,
            hello(tools=[function("f")], tool_choice={"type": "custom"}),
            "unsupported_parameter",
            "tool_choice.type",
        ),
        (
            CHAT,
            hello(tools=[function("f", strict=True, parameters={"type": "object", "not": {}})]),
            "invalid_json_schema",
            "tools[0].function.parameters",
        ),
        (
            CHAT,
            hello(tools=[function("f")], tool_choice="required", allowed_token_ids=[5]),
            "invalid_value",
            None,
        ),
        (CHAT, hello(documents=[{"text": "x"}]), "unsupported_parameter", "documents"),
        (CHAT, hello(chat_template="{{ messages }}"), "unsupported_parameter", "chat_template"),
        (CHAT, hello(chat_template_kwargs={"tools": []}), "invalid_value", "chat_template_kwargs.tools"),
        (CHAT, hello(response_format={"type": "xml"}), "invalid_value", "response_format.type"),
        (CHAT, hello(functions=[{"name": "f"}]), "unsupported_parameter", "functions"),
        (CHAT, hello(audio={"voice": "a"}), "unsupported_parameter", "audio"),
        (CHAT, hello(typical_p=0), "invalid_value", "typical_p"),
        (CHAT, hello(mirostat=3), "invalid_value", "mirostat"),
        (CHAT, hello(samplers=["top_k", "magic"]), "invalid_value", "samplers"),
        (CHAT, hello(samplers="kk"), "invalid_value", "samplers"),
        (CHAT, hello(samplers=["top_k", "penalties"]), "unsupported_parameter", "samplers"),
        (CHAT, hello(allowed_token_ids=[5, 260]), "invalid_value", "allowed_token_ids"),
        (CHAT, hello(bad_words=["a", ""]), "invalid_value", "bad_words[1]"),
        (CHAT, hello(logprobs_mode="raw_logits"), "invalid_value", "logprobs_mode"),
        (CHAT, hello(deadline_ms=0), "invalid_value", "deadline_ms"),
        (
            CHAT,
            hello(dry_multiplier=1, dry_sequence_breakers=["a", "abc"]),
            "invalid_value",
            "dry_sequence_breakers[1]",
        ),
        (CHAT, hello(guided_json={"not": {}}), "invalid_json_schema", "guided_json"),
        (CHAT, hello(cache_salt="s" * 201), "invalid_value", "cache_salt"),
        (CHAT, hello(request_id="a b"), "invalid_value", "request_id"),
        (CHAT, hello(request_id="a\n"), "invalid_value", "request_id"),
        (CHAT, hello(request_id="a", rid="b"), "invalid_value", "rid"),
        (CHAT, hello(pin_ttl_s=-1), "invalid_value", "pin_ttl_s"),
        (CHAT, hello(pin_ttl_s=60, cache_prompt=False), "invalid_value", "pin_ttl_s"),
        (CHAT, hello(return_progress=True), "invalid_value", "return_progress"),
        (CHAT, hello(use_beam_search=True), "unsupported_parameter", "use_beam_search"),
        (CHAT, hello(length_penalty=1.2), "unsupported_parameter", "length_penalty"),
        (CHAT, hello(early_stopping=True), "unsupported_parameter", "early_stopping"),
        (CHAT, hello(structural_tag={"triggers": []}), "unsupported_parameter", "structural_tag"),
        (CHAT, hello(guided_json_object=True), "unsupported_parameter", "guided_json_object"),
        (COMPLETIONS, {}, "missing_required_parameter", "prompt"),
        (COMPLETIONS, {"prompt": []}, "invalid_value", "prompt"),
        (COMPLETIONS, {"prompt": ""}, "invalid_value", "prompt"),
        (COMPLETIONS, {"prompt": ["a", ""]}, "invalid_value", "prompt[1]"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "invalid_type", "prompt"),
        (COMPLETIONS, {"prompt": [1, -1]}, "invalid_value", "prompt[1]"),
        (COMPLETIONS, {"prompt": [1, VOCAB_SIZE]}, "invalid_value", "prompt"),
        (COMPLETIONS, {"prompt": [[1], [2, "x"]]}, "invalid_type", "prompt[1][1]"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "invalid_value", "max_tokens"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2, "n": 3}, "invalid_value", "best_of"),
        (
            COMPLETIONS,
            {"prompt": "a", "truncate_prompt_tokens": 0},
            "invalid_value",
            "truncate_prompt_tokens",
        ),
        (COMPLETIONS, {"prompt": "a", "prompt_logprobs": 21}, "invalid_value", "prompt_logprobs"),
        (COMPLETIONS, {"prompt": "a", "n": 2, "best_of": 1}, "invalid_value", "best_of"),
        (COMPLETIONS, {"prompt": ["a"] * 600, "n": 2}, "invalid_value", "prompt"),
    ],
)
def test_bad_field_is_refused_by_name(gateway: Gateway, path: str, body: Any, code: str, param: str) -> None:
    """A wrong value is a 400 that names the path of the field, and nothing is spawned for it."""
    error = check_error(gateway.post(path, body), 400, code, param)
    assert error["type"] == "invalid_request_error"


def test_nothing_is_spawned_for_a_refused_request(gateway: Gateway, kernel: KernelThread) -> None:
    """Validation comes before the kernel hears of a request."""
    gateway.post(CHAT, hello(temperature=9))
    assert not any(isinstance(call, Spawn) for call in kernel.kernel.calls)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b'{"a":' * 3000])
def test_body_that_is_not_json(gateway: Gateway, raw: bytes) -> None:
    """What does not parse is `invalid_json`, however it fails to."""
    response = httpx.post(f"{gateway.url}{CHAT}", content=raw, timeout=PATIENCE_SECONDS)
    check_error(response, 400, "invalid_json")


def test_body_that_is_no_object(gateway: Gateway) -> None:
    """A JSON list is no request."""
    check_error(gateway.post(CHAT, []), 400, "invalid_type")


def test_deep_nesting_is_an_error_of_the_client(gateway: Gateway) -> None:
    """A body nested a hundred thousand deep is refused, and the gateway lives on."""
    raw = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    check_error(
        httpx.post(f"{gateway.url}{CHAT}", content=raw, timeout=PATIENCE_SECONDS), 400, "invalid_json"
    )
    assert gateway.get("/health").status_code == 200


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_content_type_does_not_matter(gateway: Gateway, content_type: str | None) -> None:
    """A body that parses is taken, whatever it is called."""
    headers = {"content-type": content_type} if content_type else {}
    raw = b'{"prompt": "a", "max_tokens": 1}'
    response = httpx.post(
        f"{gateway.url}{COMPLETIONS}", content=raw, headers=headers, timeout=PATIENCE_SECONDS
    )
    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br, identity"])
def test_a_packed_body(gateway: Gateway, encoding: str) -> None:
    """Is not taken for JSON: the client is told what to switch off. "identity" is no packing."""
    raw = b'{"prompt": "a", "max_tokens": 1}'
    for given, status in ((encoding, 415), ("identity", 200), ("", 200)):
        headers = {"content-encoding": given}
        url = f"{gateway.url}{COMPLETIONS}"
        response = httpx.post(url, content=raw, headers=headers, timeout=PATIENCE_SECONDS)
        assert response.status_code == status
        if status == 415:
            error = check_error(response, 415, "unsupported_media_type")
            assert encoding in error["message"]


def test_context_length_text_is_exact(gateway: Gateway) -> None:
    """Clients parse this sentence: it is kept to the letter."""
    error = check_error(
        gateway.post(COMPLETIONS, {"prompt": "abc", "max_tokens": CONTEXT}),
        400,
        "context_length_exceeded",
        "prompt",
    )
    assert error["message"] == (
        f"This model's maximum context length is {CONTEXT} tokens. However, you requested {CONTEXT + 3} "
        f"tokens (3 in the messages, {CONTEXT} in the completion). Please reduce the length of the messages "
        "or completion."
    )
    long = [{"role": "user", "content": "x" * CONTEXT}]
    check_error(gateway.post(CHAT, {"messages": long}), 400, "context_length_exceeded", "messages")


def say(text: str) -> dict[str, Any]:
    """The body of a conversation."""
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("path", "make_body", "param"),
    [
        ("/tokenize", lambda text: {"prompt": text}, "prompt"),
        ("/tokenize", lambda text: {"content": text}, "content"),
        ("/tokenize", say, "messages[0].content"),
        ("/apply-template", say, "messages[0].content"),
        (CHAT, lambda text: {**say(text), "truncate_prompt_tokens": 3}, "messages[0].content"),
        (COMPLETIONS, lambda text: {"prompt": [text[1:], "x"], "truncate_prompt_tokens": 3}, "prompt"),
    ],
)
def test_a_text_that_no_context_bounds(
    gateway: Gateway, path: str, make_body: Callable[[str], Any], param: str
) -> None:
    """Where a long text is no mistake it may still be too long; the limit itself is not."""
    over = "x" * (MAX_ENCODED_CHARACTERS + 1)
    error = check_error(gateway.post(path, make_body(over)), 400, "invalid_value", param)
    assert str(MAX_ENCODED_CHARACTERS) in error["message"]
    check_encoded(MAX_ENCODED_CHARACTERS, param)
    assert gateway.post(path, make_body(over[: CONTEXT // 2])).status_code == 200


def test_unknown_model(gateway: Gateway) -> None:
    """A model that is not served is a 404 with the reference text."""
    error = check_error(gateway.post(CHAT, hello(model="gpt-9")), 404, "model_not_found", "model")
    assert error["message"] == "The model `gpt-9` does not exist or you do not have access to it."


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v2/models", "/v1/chat/completions/x", "/%00", "/é"]
)
def test_unknown_path(gateway: Gateway, path: str) -> None:
    """Unknown paths answer 404 in JSON."""
    check_error(gateway.get(path), 404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", CHAT), ("PUT", CHAT), ("DELETE", "/v1/models"), ("OPTIONS", CHAT), ("BREW", "/health")],
)
def test_wrong_method(gateway: Gateway, method: str, path: str) -> None:
    """Known paths with another method answer 405 and say what is allowed."""
    response = httpx.request(method, f"{gateway.url}{path}", timeout=PATIENCE_SECONDS)
    check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"]


def test_head_has_no_body(gateway: Gateway) -> None:
    """HEAD answers like GET without the body, on pages and on errors."""
    for path, status in (("/v1/models", 200), ("/nope", 404), (CHAT, 405)):
        response = httpx.head(f"{gateway.url}{path}", timeout=PATIENCE_SECONDS)
        assert (response.status_code, response.content) == (status, b"")
        assert int(response.headers["content-length"]) > 0


@pytest.mark.parametrize("is_chunked", [True, False])
def test_body_over_the_limit(shared_kernel: KernelThread, tmp_path: Any, is_chunked: bool) -> None:
    """The limit holds for what arrives, with or without a content length, and the client sees the 413."""
    with running_gateway(shared_kernel, tmp_path, "--max-body-bytes", "100000") as gateway:
        raw = b'{"prompt": "' + b"x" * 150_000 + b'"}'
        content: Any = iter([raw[:70_000], raw[70_000:]]) if is_chunked else raw
        response = httpx.post(f"{gateway.url}{COMPLETIONS}", content=content, timeout=PATIENCE_SECONDS)
        check_error(response, 413, "payload_too_large")
        assert gateway.get("/health").status_code == 200


def test_endless_body_is_cut(shared_kernel: KernelThread, tmp_path: Any) -> None:
    """A client that never stops sending is answered and closed; nothing of it stays behind."""
    with running_gateway(shared_kernel, tmp_path, "--max-body-bytes", "100000") as gateway:
        with gateway.connect() as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
            chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                all(raw.sendall(chunk) is None for _ in range(10_000))
        assert gateway.get("/health").status_code == 200
        (line,) = shared_kernel.wait_until(
            lambda: [line for line in gateway.log_lines() if line.get("path") == "/v1/completions"]
        )
        assert (line["status"], line["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("errno", "status", "code"),
    [
        (Errno.EINVAL, 400, "invalid_value"),
        (Errno.E2BIG, 400, "context_length_exceeded"),
        (Errno.ENOMEM, 400, "insufficient_memory"),
        (Errno.EPERM, 403, "permission_denied"),
        (Errno.EFAULT, 500, "internal_error"),
        (Errno.EAGAIN, 503, "overloaded"),
        (Errno.ESHUTDOWN, 503, "draining"),
        (Errno.ENODEV, 503, "model_loading"),
    ],
)
def test_kernel_errno_is_mapped(
    gateway: Gateway, kernel: KernelThread, errno: Errno, status: int, code: str
) -> None:
    """Each refusal of the kernel has its row in the table, and what may be retried says when."""
    kernel.kernel.refusals[Spawn] = SyscallError(errno, "7 of 3")
    response = gateway.post(CHAT, hello())
    check_error(response, status, code)
    assert ("retry-after" in response.headers) == (status == 503)


@pytest.mark.parametrize(
    ("parameter", "field"),
    [("pin_seconds", "pin_ttl_s"), ("deadline_seconds", "deadline_ms"), ("min_tokens", "min_tokens")],
)
def test_the_kernel_names_the_field(
    gateway: Gateway, kernel: KernelThread, parameter: str, field: str
) -> None:
    """A limit that only the kernel knows is told by the body's name of the field, whatever the text is."""
    kernel.kernel.refusals[Spawn] = invalid_parameter(parameter, "is 601; the limit is 0 to 600")
    error = check_error(gateway.post(CHAT, hello()), 400, "invalid_value", field)
    assert error["message"] == f"'{field}' is 601; the limit is 0 to 600"


def test_internal_error_tells_the_request_id_and_nothing_else(gateway: Gateway, kernel: KernelThread) -> None:
    """A bug's answer names the request, for the log; no traceback gets out."""
    kernel.kernel.refusals[Spawn] = SyscallError(Errno.EFAULT, "secret detail")
    response = gateway.post(CHAT, hello(), headers={"x-request-id": "my-id.1"})
    error = check_error(response, 500, "internal_error")
    assert "my-id.1" in error["message"]
    assert "secret" not in error["message"]
    assert any(
        line["event"] == "internal_error" and "secret detail" in line["exception"]
        for line in gateway.log_lines()
    )


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (ExitStatus("killed", message="by an operator"), 500, "process_killed"),
        (ExitStatus("killed", message="draining"), 503, "draining"),
        (ExitStatus("error", message="device lost"), 500, "process_failed"),
    ],
)
def test_bad_end_of_a_process(
    gateway: Gateway, kernel: KernelThread, end: ExitStatus, status: int, code: str
) -> None:
    """A process that was killed or failed is an error, never a finish reason."""
    kernel.program = says("some text", end=end)
    response = gateway.post(CHAT, hello())
    check_error(response, status, code)
    assert ("x-should-retry" in response.headers) == (code == "process_killed")


def test_one_bad_choice_fails_the_request_and_kills_the_rest(gateway: Gateway, kernel: KernelThread) -> None:
    """With n = 3 the failure of one ends the other two at once."""

    async def program(process: Any) -> ExitStatus:
        if process.sample == 1:
            return ExitStatus("error", message="device lost")
        while True:
            await process.wait_change()

    kernel.program = program
    check_error(gateway.post(CHAT, hello(n=3)), 500, "process_failed")
    kernel.wait_until(lambda: not kernel.kernel.processes)


def test_null_is_absent_everywhere(gateway: Gateway, kernel: KernelThread) -> None:
    """Null for any optional field, at any depth, is the same as leaving it out."""
    names = (
        "model n temperature top_p top_k min_p seed stop logit_bias logprobs top_logprobs max_tokens tools"
    )
    names += " max_completion_tokens stream_options response_format functions min_tokens stop_token_ids user"
    names += (
        " ignore_eos cache_salt guided_json typical_p chat_template_kwargs repetition_penalty stream audio"
    )
    messages = [
        {"role": "user", "content": "hi", "name": None, "tool_calls": None, "reasoning": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": None}}],
        },
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": None}]},
    ]
    response = gateway.post(CHAT, {"messages": messages, **dict.fromkeys(names.split())})
    assert response.status_code == 200, response.text
    assert "x-llmos-ignored-params" not in response.headers
    response = gateway.post(CHAT, hello(stream=True, stream_options={"include_usage": None}))
    assert '"usage"' not in response.text
    nulls = dict.fromkeys(["best_of", "echo", "suffix", "max_tokens", "logprobs"])
    response = gateway.post(COMPLETIONS, {"prompt": "a", **nulls})
    assert response.json()["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("path", "plain", "table"),
    [
        (CHAT, hello(), CHAT_FIELDS),
        (COMPLETIONS, {"prompt": "a"}, COMPLETION_FIELDS),
        ("/v1/responses", {"input": "a", "store": False}, RESPONSE_FIELDS),
        ("/tokenize", {"prompt": "a"}, TOKENIZE_FIELDS),
        ("/detokenize", {"tokens": [97]}, DETOKENIZE_FIELDS),
    ],
)
def test_null_is_absent_for_every_field(
    gateway: Gateway, kernel: KernelThread, path: str, plain: dict[str, Any], table: FieldTable
) -> None:
    """All that a table names, at once: the same answer, the same processes, and nothing is called ignored."""
    spawned = []
    for body in (plain, {**dict.fromkeys(table), **plain}):
        response = gateway.post(path, body)
        assert response.status_code == 200, response.text
        assert int(response.headers["openai-processing-ms"]) >= 0
        assert "x-llmos-ignored-params" not in response.headers
        spawned.append([msgspec.structs.replace(p.spawn, label="") for p in kernel.kernel.spawned])
        kernel.kernel.spawned.clear()
    assert spawned[0] == spawned[1]


def test_unknown_fields_are_ignored_and_listed(gateway: Gateway) -> None:
    """Fields nobody knows do no harm; the header and the log name them once."""
    messages = [{"role": "user", "content": "hi", "ui_id": 7}, {"role": "user", "content": "hi", "é\n": 1}]
    response = gateway.post(CHAT, {"messages": messages, "strict": True, "user": "u", "metadata": {"a": "b"}})
    assert response.status_code == 200
    assert response.headers["x-llmos-ignored-params"] == "strict,messages[0].ui_id,messages[1].??"


def test_neutral_values_of_refused_fields_are_accepted(gateway: Gateway) -> None:
    """A field that we do not do may ask for nothing: clients send their defaults."""
    neutral = {
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "typical_p": 1.0,
        "mirostat": 0,
        "mirostat_tau": 5.0, "dry_multiplier": 0.0, "dry_base": 1.75, "modalities": ["text"], "lora": [],
        "cache_prompt": True, "parallel_tool_calls": True, "store": False, "service_tier": "auto",
        "use_beam_search": False, "length_penalty": 1, "early_stopping": False, "top_logprobs": 0,
        "guided_json_object": False,
    }  # fmt: skip
    response = gateway.post(CHAT, hello(**neutral))
    assert response.status_code == 200, response.text


def test_request_id_is_echoed_when_well_formed(gateway: Gateway) -> None:
    """The client's id comes back; one that could break a log or a header is replaced."""
    assert (
        gateway.post(CHAT, hello(), headers={"x-request-id": "a.B_1:-"}).headers["x-request-id"] == "a.B_1:-"
    )
    for bad in ("", "a b", "x" * 129, "a;b"):
        made = gateway.post(CHAT, hello(), headers={"x-request-id": bad}).headers["x-request-id"]
        assert made.startswith("req-")


def test_malformed_http_does_not_hurt(gateway: Gateway) -> None:
    """Garbage, a wrong upgrade and a cut request end their own connection only."""
    for junk in (
        b"\x16\x03\x01garbage\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n",
    ):
        with gateway.connect() as raw:
            raw.sendall(junk)
    with gateway.connect() as raw:
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        raw.sendall(http_request("/v1/models", b"", "GET", upgrade + key))
        assert read_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 200")  # an upgrade is not taken up
    assert gateway.get("/health").status_code == 200
