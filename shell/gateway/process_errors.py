"""What the kernel says of one process or image, in the API's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shell.gateway.errors import ApiError, invalid
from syscalls.errno import Errno, SyscallError


def not_found(code: str, message: str) -> ApiError:
    """A 404 for a thing that is not there, or not the caller's."""
    return ApiError(404, "invalid_request_error", code, message)


@contextmanager
def explaining_processes() -> Iterator[None]:
    """Turn the errors of calls about one process or image into ApiErrors.

    A process of another tenant is answered like one that does not exist.

    Raises:
        ApiError: 404 `request_not_found` or `image_not_found`, 409 `conflict`, 400 `invalid_image`,
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
                raise ApiError(409, "conflict_error", "conflict", f"{error.message}.") from error
            case Errno.ENOEXEC | Errno.EBADMSG:
                raise invalid("invalid_image", f"{error.message}.", "filename") from error
            case Errno.ENOSPC:
                raise ApiError(507, "server_error", "insufficient_storage", f"{error.message}.") from error
            case _:
                raise
