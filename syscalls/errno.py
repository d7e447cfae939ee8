"""The error list of the syscall contract: one code per condition, named by whose doing it is."""

from __future__ import annotations

import enum

from syscalls.tenant import Exceeded


class Errno(enum.StrEnum):
    """Codes carried by an error reply. The docstring of each call lists which it may return, and when."""

    EINVAL = "EINVAL"  # an argument is out of its range; the message names it and the limit
    E2BIG = "E2BIG"  # prompt plus requested output exceed the model's context
    ENOMEM = "ENOMEM"  # the request can never fit in the device's memory, even alone
    EAGAIN = "EAGAIN"  # a table or queue is full now; retrying later may succeed
    EDQUOT = "EDQUOT"  # a limit of the tenant; `exceeded` names it, and says when to try again
    ESRCH = "ESRCH"  # no such process
    EPERM = "EPERM"  # the caller's credentials do not allow it
    EBUSY = "EBUSY"  # the object is in a state that forbids the call
    EEXIST = "EEXIST"  # there is one of that name
    ENOSPC = "ENOSPC"  # no room on the disk, or the caller's share of it is used up
    ENOEXEC = "ENOEXEC"  # an image was made for another model, device or version; the message says which
    EBADMSG = "EBADMSG"  # a file is damaged: cut short, or its checksum is wrong
    ENODEV = "ENODEV"  # no device serves this
    ENOENT = "ENOENT"  # no such model, image, index or call that follows
    EPROTO = "EPROTO"  # the frame could not be decoded, or the ABI versions differ
    ENOSYS = "ENOSYS"  # the kernel does not know this call
    ESHUTDOWN = "ESHUTDOWN"  # the kernel is draining and admits nothing new
    EIO = "EIO"  # the device failed in a way that the kernel could not hide
    EFAULT = "EFAULT"  # a kernel bug; the message holds the reference for the log


class SyscallError(Exception):
    """A call failed: raised by clients, and by kernel handlers to answer with an error reply.

    Attributes:
        errno: the code.
        message: one sentence with the numbers that matter.
        exceeded: the limit, with EDQUOT.
        parameter: the field of the call that is at fault, where it is one.
    """

    def __init__(
        self, errno: Errno, message: str, exceeded: Exceeded | None = None, parameter: str | None = None
    ) -> None:
        super().__init__(f"{errno.value}: {message}")
        self.errno = errno
        self.message = message
        self.exceeded = exceeded
        self.parameter = parameter


def invalid_parameter(name: str, problem: str) -> SyscallError:
    """EINVAL for one field of a call; the message is its name and what is wrong with it."""
    return SyscallError(Errno.EINVAL, f"{name} {problem}", parameter=name)
