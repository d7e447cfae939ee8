"""What lies below a device: anonymous memory, a swap file without a name, and files that are named."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import tempfile

__all__ = ["CopyRefused", "open_host_area", "open_regular_file", "open_swap_file"]


class CopyRefused(Exception):
    """A whole copy cannot be carried out; the message names the limit."""


def open_swap_file(folder: str) -> int:
    """A file in a folder that nobody else can open and that has no name: it goes with its descriptor.

    Raises:
        OSError: the folder is not there, or takes no files.
    """
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    fd, path = tempfile.mkstemp(prefix="llmos-swap-", dir=folder)  # a file system without nameless files
    os.unlink(path)
    return fd


def open_host_area(num_bytes: int) -> mmap.mmap:
    """Anonymous memory, taken as it is first written. Raises OSError."""
    area = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without large pages
        # one fault for two megabytes, not for each page: the first copy into a slot need not be much slower
        area.madvise(mmap.MADV_HUGEPAGE)
    return area


def open_regular_file(path: str, *, is_target: bool) -> int:
    """Open what a "file" place names. Raises OSError, and CopyRefused for what is no regular file."""
    flags = os.O_RDWR | os.O_CREAT if is_target else os.O_RDONLY
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)  # a pipe must not hold the driver up
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CopyRefused(f"{path} is no regular file")
    return fd
