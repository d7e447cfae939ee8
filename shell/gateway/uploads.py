"""Request bodies in memory: each is bounded, their sum too, by key as well, and none may take for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import attrs

from shell.gateway.body_file import LARGE_BYTES
from shell.gateway.errors import RETRY_SECONDS, ApiError, unavailable

MIN_BYTES_PER_SECOND = 16 << 10  # a body that arrives more slowly than this runs out of time


@attrs.frozen
class UploadStatistics:
    """How much of the budget is used."""

    num_bytes: int
    max_bytes: int
    num_large: int  # bodies that arrive, or wait to be decoded
    max_large: int


@attrs.define(eq=False)
class Uploads:
    """The bodies of all requests under way. What has arrived counts, not what was promised: else clients
    that promise much and send nothing would keep the others out.

    A key is whatever says whose a body is; one key's bodies have a part of the whole only, so that they never
    keep out another's. None: there are no keys, and all may have the whole.
    """

    max_body_bytes: int
    max_bytes: int  # of all bodies together; at least max_body_bytes
    timeout: float  # seconds that a body may take, besides its bytes at MIN_BYTES_PER_SECOND
    max_large: int  # bodies above LARGE_BYTES at once
    max_large_of_key: int
    _bytes: Counter[Hashable] = attrs.field(factory=Counter)  # by key; no zeros
    _large: Counter[Hashable] = attrs.field(factory=Counter)

    def statistics(self) -> UploadStatistics:
        """Return a frozen view."""
        return UploadStatistics(self._bytes.total(), self.max_bytes, self._large.total(), self.max_large)

    @property
    def max_bytes_of_key(self) -> int:
        """Half of the whole, or as much as one body may have."""
        return max(self.max_body_bytes, self.max_bytes // 2)

    def check_promise(self, content_length: int | None, key: Hashable) -> None:
        """Refuse a body by its length, before any of it is read. Raises ApiError 413, 429 or 503."""
        if content_length is None:
            return
        self.check_body(content_length)
        self._check_sum(content_length, key)
        if content_length > LARGE_BYTES:
            self._check_large(key)

    def check_body(self, num_bytes: int) -> None:
        """Refuse a body that is over its own limit. Raises ApiError 413."""
        if num_bytes > self.max_body_bytes:
            message = f"The request's body is over the limit of {self.max_body_bytes} bytes."
            raise ApiError(413, "invalid_request_error", "payload_too_large", message)

    def reserve(self, num_bytes: int, key: Hashable) -> None:
        """Count bytes that are kept. Raises ApiError 503 or 429, and then counts none."""
        self._check_sum(num_bytes, key)
        self._bytes[key] += num_bytes

    def release(self, num_bytes: int, key: Hashable) -> None:
        """Give back what was reserved for a request that is over."""
        _take(self._bytes, key, num_bytes)

    def enter_large(self, key: Hashable) -> None:
        """Count a body that has become large. Raises ApiError 503 or 429, and then does not count it."""
        self._check_large(key)
        self._large[key] += 1

    def leave_large(self, key: Hashable) -> None:
        """The body is decoded, or nobody wants it any more."""
        _take(self._large, key, 1)

    def seconds_for(self, num_bytes: int) -> float:
        """Return how long after its start a body may still be arriving, when so much of it has."""
        return self.timeout + num_bytes / MIN_BYTES_PER_SECOND

    def too_slow(self) -> ApiError:
        """A 408 for a body that trickles, or has stopped."""
        message = (
            f"The request's body took longer than {self.timeout:g} seconds and arrived more slowly than "
            f"{MIN_BYTES_PER_SECOND} bytes per second."
        )
        return ApiError(408, "timeout_error", "request_timeout", message)

    def _check_sum(self, num_bytes: int, key: Hashable) -> None:
        num_of_key, limit = self._bytes[key], self.max_bytes_of_key
        if key is not None and num_of_key + num_bytes > limit:
            raise _limited(f"request bodies of {num_of_key} bytes are under way; a key's limit is {limit}")
        if (total := self._bytes.total()) + num_bytes > self.max_bytes:
            message = f"Request bodies of {total} bytes are under way; the limit is {self.max_bytes}."
            raise unavailable("overloaded", message)

    def _check_large(self, key: Hashable) -> None:
        large = f"bodies of more than {LARGE_BYTES} bytes are under way"
        if key is not None and self._large[key] >= self.max_large_of_key:
            raise _limited(f"{self._large[key]} {large}, which is a key's limit")
        if (total := self._large.total()) >= self.max_large:
            raise unavailable("overloaded", f"{total} {large}, which is the limit.")


def _take(counts: Counter[Hashable], key: Hashable, count: int) -> None:
    counts[key] -= count
    assert counts[key] >= 0
    if not counts[key]:
        del counts[key]


def _limited(what: str) -> ApiError:
    """A 429 that clients retry."""
    headers = {"retry-after": str(RETRY_SECONDS), "retry-after-ms": str(RETRY_SECONDS * 1000)}
    message = f"Rate limit reached: {what}."
    return ApiError(429, "requests", "rate_limit_exceeded", message, None, headers)
