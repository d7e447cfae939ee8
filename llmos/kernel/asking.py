"""Asking a Core: a message that reports its outcome, and a task that waits for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llmos.ipc.mailbox import MailboxClosed, Reply
from llmos.sched.core import Core
from llmos.sched.messages import Message
from syscalls.errno import Errno, SyscallError

T = TypeVar("T")


def send_question(core: Core, make: Callable[[Callable[[T], None]], Message]) -> Reply[T]:
    """Send a Core a message, made with the `done` that it calls; return what to wait for.

    Raises:
        SyscallError: ESHUTDOWN, the kernel is stopping.
    """
    reply: Reply[T] = Reply()
    try:
        core.mailbox.send_nowait(make(reply.set))
    except MailboxClosed:
        raise SyscallError(Errno.ESHUTDOWN, "the kernel is stopping") from None
    return reply


async def ask(core: Core, make: Callable[[Callable[[T], None]], Message]) -> T:
    """Send a Core a message and wait for its outcome. A checkpoint. Raises as `send_question` does."""
    return await send_question(core, make).wait()
