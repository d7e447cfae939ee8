"""Request bodies in memory: each is bounded, and so is their sum, and none may take for ever to arrive."""

from __future__ import annotations

import attrs

from shell.gateway.errors import ApiError, unavailable

MIN_BYTES_PER_SECOND = 16 << 10  # a body that arrives more slowly than this runs out of time


@attrs.frozen
class UploadStatistics:
    """How much of the budget is used."""

    num_bytes: int
    max_bytes: int


@attrs.define(eq=False)
class Uploads:
    """The bytes of all bodies of requests under way. What has arrived counts, not what was promised: else
    clients that promise much and send nothing would keep the others out."""

    max_body_bytes: int
    max_bytes: int  # of all bodies together; at least max_body_bytes
    timeout: float  # seconds that a body may take, besides its bytes at MIN_BYTES_PER_SECOND
    _num_bytes: int = 0

    def statistics(self) -> UploadStatistics:
        """Return a frozen view."""
        return UploadStatistics(self._num_bytes, self.max_bytes)

    def check_promise(self, content_length: int | None) -> None:
        """Refuse a body by its length, before any of it is read. Raises ApiError 413 or 503 `overloaded`."""
        if content_length is None:
            return
        self.check_body(content_length)
        if self._num_bytes + content_length > self.max_bytes:
            raise self._overloaded()

    def check_body(self, num_bytes: int) -> None:
        """Refuse a body that is over its own limit. Raises ApiError 413."""
        if num_bytes > self.max_body_bytes:
            message = f"The request's body is over the limit of {self.max_body_bytes} bytes."
            raise ApiError(413, "invalid_request_error", "payload_too_large", message)

    def reserve(self, num_bytes: int) -> None:
        """Count bytes that are kept. Raises ApiError 503 `overloaded`, and then counts none."""
        if self._num_bytes + num_bytes > self.max_bytes:
            raise self._overloaded()
        self._num_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Give back what was reserved for a request that is over."""
        self._num_bytes -= num_bytes
        assert self._num_bytes >= 0

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

    def _overloaded(self) -> ApiError:
        message = f"Request bodies of {self._num_bytes} bytes are under way; the limit is {self.max_bytes}."
        return unavailable("overloaded", message)
