"""Errands: calls that wait for disks, threads or devices, each in a task of its own, outside its session."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs
import structlog
import trio

from syscalls.codec import Answer, ErrorReply, error_reply
from syscalls.errno import Errno, SyscallError

log = structlog.get_logger("syscall")

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Caller(Protocol):
    """The part of a session that an errand needs."""

    def park(self, call_id: int, undo: Callable[[], None]) -> None:
        """See Session."""

    def reply(self, call_id: int, answer: Answer) -> None:
        """See Session."""


@attrs.define(eq=False)
class Errands:
    """Runs errands until it is cancelled. A failure is the caller's answer, never the kernel's end.

    Args:
        run_blocking: runs a function that blocks; tests run it in place, where a virtual clock sees it.
    """

    run_blocking: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync
    _nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; errands that are under way are cancelled, too."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def start(
        self, caller: Caller, call_id: int, errand: Callable[[], Awaitable[Answer]], *, is_lasting: bool
    ) -> None:
        """Answer a call when its errand is done.

        Args:
            caller: made the call.
            errand: returns the answer; may raise SyscallError and OSError.
            is_lasting: goes on when the session ends; else it is cancelled then.

        Raises:
            SyscallError: ESHUTDOWN, the kernel is stopping; EAGAIN, too many calls of the caller wait.
        """
        if self._nursery is None:
            raise SyscallError(Errno.ESHUTDOWN, "the kernel is stopping")
        scope = trio.CancelScope()
        caller.park(call_id, (lambda: None) if is_lasting else scope.cancel)
        self._nursery.start_soon(self._carry_out, caller, call_id, errand, scope)

    async def _carry_out(
        self,
        caller: Caller,
        call_id: int,
        errand: Callable[[], Awaitable[Answer]],
        scope: trio.CancelScope,
    ) -> None:
        with scope:
            try:
                answer = await errand()
            except SyscallError as error:
                answer = error_reply(error)
            except OSError as error:
                code = Errno.ENOSPC if error.errno in OUT_OF_SPACE else Errno.EIO
                answer = ErrorReply(code, f"{error.filename or 'a file'}: {error.strerror or error}")
            except Exception:
                log.exception("errand_failed", call=call_id)
                answer = ErrorReply(Errno.EFAULT, "kernel bug; see the kernel's log")
            caller.reply(call_id, answer)
