"""Every failure a client can see, in the one shape of the OpenAI API.

An `ApiError` may be raised anywhere below the front door; whatever else comes up there is mapped by
`as_api_error`: a kernel errno to its row of the table, our own bug to a 500 without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.exceptions import HTTPException

from shell.gateway.limits import limited_kind, refusal_headers
from syscalls.errno import Errno, SyscallError
from syscalls.session import ConnectionLost

RETRY_SECONDS = 1
# Fields of the kernel's calls whose limits are its own, by the names that bodies have for them.
BODY_FIELDS = {
    "pin_seconds": "pin_ttl_s", "deadline_seconds": "deadline_ms", "nice": "priority", "num_samples": "n",
    "cache_salt": "cache_salt", "min_tokens": "min_tokens", "max_tokens": "max_tokens",
    "stop_token_ids": "stop_token_ids", "logit_bias": "logit_bias", "prompt_logprobs": "prompt_logprobs",
    "allowed_token_ids": "allowed_token_ids", "bad_words": "bad_words", "pooling": "pooling",
}  # fmt: skip


class ClientDisconnected(Exception):
    """The client went away: nobody is left to answer. Logged as status 499."""


class ApiError(Exception):
    """A refusal or failure with its HTTP status and the four fields of the error object.

    Args:
        status: HTTP status.
        kind: the `type` field.
        code: the `code` field: a word, never a number.
        message: one sentence for a person.
        param: path of the field at fault, such as `messages[0].content`.
        headers: extra response headers.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        code: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the error object, ready to encode."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(code: str, message: str, param: str | None = None) -> ApiError:
    """A 400: the request itself is wrong."""
    return ApiError(400, "invalid_request_error", code, message, param)


def invalid_value(param: str, message: str) -> ApiError:
    """A 400 for a field of the right type with a wrong value."""
    return invalid("invalid_value", message, param)


def unsupported(param: str, detail: str = "") -> ApiError:
    """A 400 for something we know and do not do: refused by name, never dropped in silence."""
    message = f"Unsupported parameter: '{param}' is not supported{detail}."
    return invalid("unsupported_parameter", message, param)


def context_length_exceeded(limit: int, num_prompt: int, num_completion: int, param: str) -> ApiError:
    """A 400 whose text clients parse: keep it to the letter."""
    return invalid(
        "context_length_exceeded",
        f"This model's maximum context length is {limit} tokens. However, you requested "
        f"{num_prompt + num_completion} tokens ({num_prompt} in the messages, {num_completion} in the "
        "completion). Please reduce the length of the messages or completion.",
        param,
    )


def model_not_found(name: str) -> ApiError:
    """A 404 for a model that is not served."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError(404, "invalid_request_error", "model_not_found", message, "model")


def invalid_api_key(message: str) -> ApiError:
    """A 401: no key, or one that nobody has."""
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, "invalid_request_error", "invalid_api_key", message, None, headers)


def rate_limited(error: SyscallError) -> ApiError:
    """A 429: a limit of the tenant; the headers say when to try again."""
    exceeded = error.exceeded
    if exceeded is None:
        return ApiError(429, "requests", "rate_limit_exceeded", error.message)
    headers = refusal_headers(exceeded)
    if exceeded.limit == "token_budget":
        message = f"You exceeded your current quota: {error.message}."
        return ApiError(429, "insufficient_quota", "insufficient_quota", message, None, headers)
    message = f"Rate limit reached: {error.message}."
    return ApiError(429, limited_kind(exceeded), "rate_limit_exceeded", message, None, headers)


def unavailable(code: str, message: str, retry_seconds: int = RETRY_SECONDS) -> ApiError:
    """A 503 that clients retry: overloaded, model_loading or draining."""
    return ApiError(503, "service_unavailable", code, message, None, {"retry-after": str(retry_seconds)})


def draining() -> ApiError:
    """A 503 during shutdown."""
    return unavailable("draining", "The server is shutting down and admits no new requests.", 5)


def kernel_lost() -> ApiError:
    """A 503 while there is no kernel to talk to; it is restarted, so a retry is the right thing."""
    return unavailable("model_loading", "The kernel is not reachable at the moment.")


def process_killed(message: str) -> ApiError:
    """A 500 for a request whose process was killed by somebody else; a retry would only be killed again."""
    text = f"The request was killed{': ' + message if message else '.'}"
    return ApiError(500, "server_error", "process_killed", text, None, {"x-should-retry": "false"})


def internal_error(request_id: str) -> ApiError:
    """A 500 for our own bug: the log has the traceback, the client the id to ask with."""
    message = f"Internal error; the server's log has the details under request id {request_id}."
    return ApiError(500, "server_error", "internal_error", message)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def root_cause(error: BaseException) -> BaseException:
    """Pick from an exception group the one that tells the client most: ours first, then the kernel's."""
    leaves = list(_leaves(error))
    for wanted in (ClientDisconnected, ApiError, SyscallError, ConnectionLost):
        for leaf in leaves:
            if isinstance(leaf, wanted):
                return leaf
    return leaves[0]


def _from_errno(error: SyscallError, request_id: str) -> ApiError:
    match error.errno:
        case Errno.EINVAL:
            name = error.parameter or ""
            if (field := BODY_FIELDS.get(name)) is None:
                return invalid("invalid_value", error.message)
            return invalid_value(field, f"'{field}'{error.message.removeprefix(name)}")
        case Errno.E2BIG:
            return invalid("context_length_exceeded", error.message)
        case Errno.ENOMEM:
            return invalid("insufficient_memory", f"The request can never fit: {error.message}")
        case Errno.EAGAIN:
            return unavailable("overloaded", f"The server is overloaded: {error.message}")
        case Errno.EDQUOT:
            return rate_limited(error)
        case Errno.ESHUTDOWN:
            return draining()
        case Errno.ENODEV:
            return unavailable("model_loading", f"The model is not ready: {error.message}")
        case Errno.ENOENT:
            return ApiError(404, "invalid_request_error", "model_not_found", error.message, "model")
        case Errno.EPERM:
            field = BODY_FIELDS.get(error.parameter or "")
            message = error.message
            if field is not None:
                message = f"'{field}' is over what you may ask for: {message}."
            return ApiError(403, "permission_error", "permission_denied", message, field)
        case _:
            return internal_error(request_id)


def _from_http(error: HTTPException, method: str, path: str) -> ApiError:
    if error.status_code == 405:
        message = f"Method {method} is not allowed for {path}."
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        return ApiError(405, "invalid_request_error", "method_not_allowed", message, None, headers)
    return ApiError(404, "invalid_request_error", "unknown_url", f"Unknown request URL: {method} {path}.")


def as_api_error(error: BaseException, request_id: str, method: str = "", path: str = "") -> ApiError:
    """Map any failure to what its client sees. An exception group counts as its root cause."""
    cause = root_cause(error)
    match cause:
        case ApiError():
            return cause
        case SyscallError():
            return _from_errno(cause, request_id)
        case ConnectionLost():
            return kernel_lost()
        case HTTPException():
            return _from_http(cause, method, path)
        case _:
            return internal_error(request_id)
