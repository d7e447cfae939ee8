"""Rest: a device takes no steps, and holds nothing of any process, until it is woken.

Whoever has memory loses it as in a preemption, so that all go on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from llmos.sched.messages import Done, DropCache
from llmos.sched.residents import Residents
from syscalls.errno import Errno, SyscallError


@attrs.define(eq=False)
class Rest:
    """Whether a device is to rest, how far it has come to that, and who waits for it."""

    is_asked_for: bool = False
    _is_dropping: bool = False  # the prefix cache: the last that there is
    _is_empty: bool = False
    _waiting: list[Done] = attrs.field(factory=list)

    def begin(self, done: Done) -> None:
        """Ask for it; `done` is called when there is nothing in the device's memory any more."""
        self.is_asked_for = True
        self._waiting.append(done)

    def end(self) -> None:
        """Wake up. Those that still wait for the device to come to rest are told so."""
        self.is_asked_for = self._is_dropping = self._is_empty = False
        self._tell(SyscallError(Errno.EBUSY, "it was woken before it was at rest"))

    def settle(self) -> None:
        """There is nothing in memory, and nothing on its way."""
        self._tell(None)

    def empty(self, residents: Residents, drop_cache: Callable[[DropCache], None]) -> bool:
        """Take from the device what can be taken now. Mutates processes and memory.

        Whose memory is on its way to the device loses it as soon as it is there.

        Returns:
            True when nothing is left.
        """
        assert residents.switch is not None
        residents.take_all_memory()
        is_held = any(process.space is not None for process in residents.queue.members.values())
        if is_held or residents.switch.swap.transfers:
            self._is_dropping = self._is_empty = False  # a copy into a file may have begun meanwhile
        elif not self._is_dropping:
            self._is_dropping = True
            drop_cache(DropCache(None, self._note_dropped))
        return self._is_empty

    def _note_dropped(self, num_pages: int) -> None:
        self._is_empty = self._is_dropping

    def _tell(self, error: SyscallError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(error)
