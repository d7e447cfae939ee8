"""The error table as users of the official client meet it: class, code, and whether it tries again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from syscalls.errno import Errno, SyscallError
from syscalls.process import Spawn
from syscalls.tenant import Exceeded
from tests.gateway.harness import Gateway, KernelThread, running_gateway

MESSAGES: Any = [{"role": "user", "content": "hi"}]
PER_MINUTE = Exceeded("requests_per_minute", 1.0, 0.01)
NEVER = Exceeded("tokens_per_minute", 9.0, None)


def count_attempts(base_url: str, key: str = "any", **fields: Any) -> tuple[openai.APIStatusError, int]:
    """Ask with one retry allowed; returns the error and how often the client asked."""
    paths: list[str] = []
    with (
        httpx.Client(event_hooks={"request": [lambda request: paths.append(request.url.path)]}) as http,
        OpenAI(base_url=base_url, api_key=key, max_retries=1, http_client=http) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.chat.completions.create(**{"model": "scripted", "messages": MESSAGES, **fields})
    return caught.value, len(paths)


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"messages": "hi"}, openai.BadRequestError, "invalid_type"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value"),
        ({"max_tokens": 10_000_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"extra_body": {"audio": {"voice": "x"}}}, openai.BadRequestError, "unsupported_parameter"),
        ({"model": "no-such"}, openai.NotFoundError, "model_not_found"),
    ],
)
def test_refusals_of_the_request(
    gateway: Gateway, fields: dict[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    """What the client did wrong is told once."""
    error, num_attempts = count_attempts(gateway.base_url, **fields)
    assert (type(error), error.code, num_attempts) == (kind, code, 1)


@pytest.mark.parametrize(
    ("refusal", "kind", "code", "num_attempts"),
    [
        (SyscallError(Errno.EPERM, "no"), openai.PermissionDeniedError, "permission_denied", 1),
        (SyscallError(Errno.EDQUOT, "x", PER_MINUTE), openai.RateLimitError, "rate_limit_exceeded", 2),
        (SyscallError(Errno.EDQUOT, "x", NEVER), openai.RateLimitError, "rate_limit_exceeded", 1),
        (SyscallError(Errno.EAGAIN, "full"), openai.InternalServerError, "overloaded", 2),
        (SyscallError(Errno.ESHUTDOWN, "bye"), openai.InternalServerError, "draining", 2),
        (SyscallError(Errno.ENODEV, "soon"), openai.InternalServerError, "model_loading", 2),
    ],
)
def test_refusals_of_the_kernel(
    gateway: Gateway,
    kernel: KernelThread,
    refusal: SyscallError,
    kind: type[openai.APIStatusError],
    code: str,
    num_attempts: int,
) -> None:
    """What may pass is tried again, after the time that the headers name; what cannot is not."""
    kernel.kernel.refusals[Spawn] = refusal
    error, attempts = count_attempts(gateway.base_url)
    assert (type(error), error.code, attempts) == (kind, code, num_attempts)


def test_wrong_key_and_large_body(tmp_path: Path) -> None:
    """A key that nobody has is an AuthenticationError; a large body a plain status error, 413."""
    with (
        KernelThread(tmp_path / "kernel", {"good": "tester"}) as kernel,
        running_gateway(kernel, tmp_path / "g", "--max-body-bytes", "10000", wait=False) as gateway,
    ):
        kernel.wait_until(lambda: gateway.get("/health").status_code == 200)
        error, num_attempts = count_attempts(gateway.base_url, "bad")
        assert (type(error), error.code, num_attempts) == (openai.AuthenticationError, "invalid_api_key", 1)
        error, num_attempts = count_attempts(gateway.base_url, "good", user="x" * 20_000)
        assert (error.status_code, error.code, num_attempts) == (413, "payload_too_large", 1)
