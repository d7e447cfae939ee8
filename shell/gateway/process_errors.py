"""What the kernel says of one process or image, in the API's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shell.gateway.errors import ApiError, invalid, invalid_value
from syscalls.errno import Errno, SyscallError

MAX_PID_DIGITS = 16
NO_RETRY = {"x-should-retry": "false"}  # clients try a 5xx again by themselves


def not_found(code: str, message: str) -> ApiError:
    """A 404 for a thing that is not there, or not the caller's."""
    return ApiError(404, "invalid_request_error", code, message)


@contextmanager
def explaining_processes() -> Iterator[None]:
    """Turn the errors of calls about one process or image into ApiErrors.

    A process of another tenant is answered like one that does not exist.

    Raises:
        ApiError: 404 `request_not_found` or `image_not_found`, 400 `conflict` or `invalid_image`,
            507 `insufficient_storage`.
        SyscallError: anything else.
    """
    try:
        yield
    except SyscallError as error:
        match error.errno:
            case Errno.ESRCH | Errno.EPERM:
                raise not_found("request_not_found", "There is no such request or process.") from error
            case Errno.ENOENT:
                raise not_found("image_not_found", f"{error.message}.") from error
            case Errno.EBUSY | Errno.EEXIST:
                raise invalid("conflict", f"{error.message}.") from error
            case Errno.ENOEXEC | Errno.EBADMSG:
                raise invalid("invalid_image", f"{error.message}.", "filename") from error
            case Errno.ENOSPC:
                message = f"{error.message}."
                raise ApiError(
                    507, "server_error", "insufficient_storage", message, headers=NO_RETRY
                ) from error
            case _:
                raise


def read_pid(given: str, param: str) -> int:
    """Convert a pid of a path. Raises ApiError 400."""
    if not (given.isascii() and given.isdecimal() and len(given) <= MAX_PID_DIGITS):
        raise invalid_value(param, f"The {param} is {given[:40]!r}; it must be a process id, a number.")
    return int(given)
