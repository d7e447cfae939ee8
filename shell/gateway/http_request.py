"""What h11 lets pass and we do not, and how a request that is none is told so."""

from __future__ import annotations

import h11

from shell.gateway.errors import ApiError


def check_request(request: h11.Request) -> None:
    """Refuse a head by which a proxy in front and we could see different ends of the body.

    Raises h11.RemoteProtocolError: another version, or a length beside chunks, or chunks in HTTP/1.0.
    """
    if not request.http_version.startswith(b"1."):
        raise h11.RemoteProtocolError("this port speaks HTTP/1.1", 505)
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names:
        if b"content-length" in names:
            raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length")
        if request.http_version == b"1.0":
            raise h11.RemoteProtocolError("Transfer-Encoding in HTTP/1.0")


def explain_bad_request(error: h11.RemoteProtocolError) -> ApiError:
    """The error of what is no request. What h11 quotes, whole and as Python writes it, is left out."""
    reason = str(error).partition(": bytearray(")[0].partition(" (expected b")[0]
    return ApiError(error.error_status_hint, "invalid_request_error", "bad_request", f"Not HTTP: {reason}.")
