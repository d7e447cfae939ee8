"""Copies that are begun and answered while a step runs, on a device whose steps hold the driver up.

A step of a processor is one call that takes milliseconds; who waits for memory would wait for it, and for the
one behind it, to have microseconds of copying done. A thread listens meanwhile, and does what `after` allows.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from drivers.encoder.engine import EncoderEngine
    from drivers.engine import Engine
    from drivers.link import KernelLink
    from llmos.device import CopyDone

__all__ = ["CopyDesk"]

QUIET_SECONDS = 1.0  # after the last copy; then steps are not listened beside until the next one


@attrs.define(eq=False)
class CopyDesk:
    """Serves the copies of one driver while it is in a step; the driver itself does in between.

    The link and the engine's copies have one user at a time: the driver, or, inside `open`, this thread.

    Args:
        link: to the kernel.
        engine: begins copies, and knows which have ended.
    """

    link: KernelLink
    engine: Engine | EncoderEngine
    _turn: threading.Lock = attrs.field(init=False, factory=threading.Lock)  # whose link it is
    _is_open: threading.Event = attrs.field(init=False, factory=threading.Event)
    _is_closed: bool = attrs.field(init=False, default=False)
    _step_id: int = attrs.field(init=False, default=0)
    _last_copy_at: float = attrs.field(init=False, default=float("-inf"))
    _thread: threading.Thread | None = attrs.field(init=False, default=None)
    _error: BaseException | None = attrs.field(init=False, default=None)
    _wake: int = attrs.field(init=False, factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def note_copy(self) -> None:
        """A copy has come: others may soon."""
        self._last_copy_at = time.monotonic()

    def begin_copies(self, step_id: int) -> list[CopyDone]:
        """Begin the copies that have come and need not wait for a step, or one behind it; those that ended.

        Raises:
            Exception: the kernel sent garbage, or the device is beyond use.
        """
        copies = self.link.take_copies(step_id)
        if copies:
            self.note_copy()
        return self.engine.begin_copies(copies)

    @contextlib.contextmanager
    def open(self, step_id: int) -> Iterator[None]:
        """Serve copies that need not wait for a step, or one behind it, until the end of the block.

        Raises:
            Exception: what serving them raised.
        """
        if not self.engine.steps_hold_up or time.monotonic() - self._last_copy_at > QUIET_SECONDS:
            yield
            return
        if self._thread is None:
            self._turn.acquire()
            self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
            self._thread.start()
        self._step_id = step_id
        self._is_open.set()
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()
            self._is_open.clear()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread. Idempotent; outside `open`."""
        self._is_closed = True
        if self._thread is not None:
            self._is_open.set()
            os.eventfd_write(self._wake, 1)
            self._turn.release()
            self._thread.join()
            self._thread = None
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _run(self) -> None:
        while self._error is None:
            self._is_open.wait()
            poll = select.poll()
            for fd in (self.link.fileno(), self._wake, *self.engine.copy_fds()):
                poll.register(fd, select.POLLIN)
            poll.poll()
            with self._turn:
                if self._is_closed:
                    return
                if self._is_open.is_set():
                    self._serve()
                if self.link.is_over:
                    return  # the driver will see it, too

    def _serve(self) -> None:
        try:
            for done in self.begin_copies(self._step_id):
                self.link.send(done)
        except Exception as error:  # for the driver, when its step is over
            self._error = error
