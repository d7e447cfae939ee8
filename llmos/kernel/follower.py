"""A `follow` call: what of a process's output its client has been sent, and how much more it may be sent.

Nothing is copied when a token comes: the process keeps its output anyway. The follower only becomes due, and
is asked for an output when its session can send one; a client that does not read finds several steps in one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import attrs

from llmos.kernel.output import make_output
from llmos.kernel.system import System
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Process
from syscalls.codec import Answer, ErrorReply
from syscalls.errno import Errno, SyscallError
from syscalls.process import Output

MAX_OUTPUT_TOKENS = 1024  # in one answer; more come in the next


@attrs.define(eq=False)
class Follower:
    """A reader that stays: told by its process of every change, until it has left.

    Invariant: 0 <= offset <= len(process.output).
    """

    call_id: int
    process: Process
    offset: int  # of the next token to be sent
    until: int  # credit: no token at or past this position is sent
    owner: Followers
    has_left: bool = False

    def note(self) -> None:
        """Something has changed: there is more output or credit, the turn is over, the process was reaped.

        Whoever is told before us may have its last answer sent, and the process reaped by that, which tells
        us: then we may have left when it is our turn.
        """
        if self.has_left:
            return
        if self._can_send:
            self.owner.note_due(self)
        elif self._is_reaped:
            message = f"process {self.process.pid} was reaped before all of its output could be sent"
            self.fail(SyscallError(Errno.ESRCH, message))

    def take(self) -> Output | None:
        """Take what can be sent next; None: nothing. After the last one, it has left."""
        if not self._can_send:
            return None
        process, offset = self.process, self.offset
        self.offset = max(offset, min(len(process.output), self.until, offset + MAX_OUTPUT_TOKENS))
        output = make_output(process, offset, self.offset)
        if output.end is not None:
            self.owner.remove(self)
            if process.auto_reap and process.state is ProcState.ZOMBIE:
                self.owner.note_read(process)
        elif self.offset < len(process.output):
            self.note()
        return output

    def fail(self, error: SyscallError) -> None:
        """Leave, with an error as the last answer."""
        self.owner.remove(self)
        self.owner.reply(self.call_id, ErrorReply(error.errno, error.message))

    @property
    def _can_send(self) -> bool:
        length = len(self.process.output)
        if self.offset < length:
            return self.offset < self.until
        return self.process.turn_is_over

    @property
    def _is_reaped(self) -> bool:
        return self.process not in self.owner.system.table


@attrs.define(eq=False)
class Followers:
    """Those of one session, and which of them have something to send.

    Args:
        system: whose processes they follow.
        reply: gives a call its last answer, where that is an error.
        on_due: told how many are due, when there is one more.
    """

    system: System
    reply: Callable[[int, Answer], None]
    on_due: Callable[[int], None]
    _members: dict[int, Follower] = attrs.field(factory=dict)  # by the id of their call
    _due: dict[Follower, None] = attrs.field(factory=dict)  # whoever became due first comes first
    _read: list[Process] = attrs.field(factory=list)  # to the end: `reap_read` is next

    def __len__(self) -> int:
        return len(self._members)

    @property
    def are_due(self) -> bool:
        """True when `take` may have something."""
        return bool(self._due)

    def begin(self, call_id: int, process: Process, offset: int, until: int) -> None:
        """Follow a process. Raises SyscallError: EINVAL, the call follows already."""
        if call_id in self._members:
            raise SyscallError(Errno.EINVAL, f"call {call_id} follows already")
        follower = self._members[call_id] = Follower(call_id, process, offset, until, self)
        process.followers.append(follower.note)
        follower.note()

    def find(self, call_id: int) -> Follower:
        """Look one up. Raises SyscallError: ENOENT."""
        if call_id not in self._members:
            raise SyscallError(Errno.ENOENT, f"call {call_id} does not follow a process")
        return self._members[call_id]

    def remove(self, follower: Follower) -> None:
        """Have one leave: nothing of it is sent any more."""
        del self._members[follower.call_id]
        follower.has_left = True
        self._due.pop(follower, None)
        follower.process.followers.remove(follower.note)

    def note_due(self, follower: Follower) -> None:
        """One has something to send: it is asked for it once, when that can be done."""
        self._due[follower] = None
        self.on_due(len(self._due))

    def note_read(self, process: Process) -> None:
        """The end of one that is reaped by its last read was taken."""
        self._read.append(process)

    def reap_read(self) -> None:
        """Reap what was read to its end, now that what was taken is on its way: others may be told of it."""
        read, self._read = self._read, []
        for process in read:
            self.system.reap(process)

    def take(self, most: int) -> list[tuple[int, Output]]:
        """Ask those who became due first, so many at most; return what they have, by call.

        One that has more is due again, behind the others.
        """
        due = list(islice(self._due, most))
        for follower in due:
            del self._due[follower]
        taken = [(follower.call_id, follower.take()) for follower in due]
        return [(call_id, output) for call_id, output in taken if output is not None]

    def discard(self, call_id: int) -> None:
        """Have one leave, if it is still there."""
        if call_id in self._members:
            self.remove(self._members[call_id])

    def check_rights(self, check: Callable[[Process], None]) -> None:
        """End those whose process the session may not read any more: `check` raises SyscallError."""
        for follower in list(self._members.values()):
            try:
                check(follower.process)
            except SyscallError as error:
                follower.fail(error)

    def clear(self) -> None:
        """Have all leave, without a word."""
        for follower in list(self._members.values()):
            self.remove(follower)
