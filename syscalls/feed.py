"""A process's output, sent by the kernel as it comes: the reader's end of `Follow`.

with client.open_feed(pid) as feed:
    last = await feed.follow(lambda output: print(output.tokens) is None)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import outcome
import trio

from syscalls.codec import Answer, ErrorReply
from syscalls.errno import Errno, SyscallError
from syscalls.process import Follow, Grant, Output

FEED_TOKENS = 128  # that may be on their way to a reader, or wait for it

Take = Callable[[Output], bool]
"""Deals with an output that does not end the turn; False: the task is wanted before the next."""


class OutputFeed:
    """Hands out each token once and in order; keeps what comes before it is wanted, a window at most.

    The kernel is told of more room when half of the window was handed out: a token's part in it is small.
    `offset` is that of the next token that is handed out.
    """

    def __init__(self, post: Callable[[Follow | Grant], int], pid: int, offset: int, window: int) -> None:
        self.offset = offset
        self._post = post
        self._window = window
        self._until = offset + window  # what the kernel was told
        self._held: deque[Answer] = deque()  # arrived while no task followed
        self._task: trio.lowlevel.Task | None = None  # that follows
        self._take: Take | None = None
        self._loss: Exception | None = None  # why nothing comes any more
        self.call_id = post(Follow(pid, self._until, offset))

    async def follow(self, take: Take) -> Output:
        """Give outputs to `take` as they arrive; return the first that it does not take, or that ends it all.

        No task is woken in between, which makes many readers cheap: `take` runs in the task that reads the
        socket, must not wait, and holds up everybody's answers while it runs. What it raises is raised here.
        Called again, it goes on behind what it returned. A checkpoint; cancelled, nothing is lost.

        Raises:
            SyscallError: the kernel's refusal, see `Follow`.
            ConnectionLost: the session is over, and so is what had arrived.
            trio.BusyResourceError: another task follows.
            trio.EndOfChannel: the turn's end was handed out before.
        """
        if self._task is not None:
            raise trio.BusyResourceError("another task follows this feed")
        await trio.lowlevel.checkpoint()
        while self._held:
            answer = self._held.popleft()
            if not self._hand_out(answer, take):
                return self._result(answer)
        if self._loss is not None:
            raise self._loss
        self._task, self._take = trio.lowlevel.current_task(), take
        answer = await trio.lowlevel.wait_task_rescheduled(self._abandon)
        return self._result(answer)

    def receive(self, answer: Answer) -> bool:
        """Take what the kernel sent; True: it is the last of it. Called by the client."""
        task = self._task
        if task is None or self._take is None:
            self._held.append(answer)
        else:
            try:
                if self._hand_out(answer, self._take):
                    return False
                result: outcome.Outcome[Answer] = outcome.Value(answer)
            except Exception as error:
                result = outcome.Error(error)
            self._task = self._take = None
            trio.lowlevel.reschedule(task, result)
        return not isinstance(answer, Output) or answer.end is not None

    def lose(self, loss: Exception) -> None:
        """Nothing comes any more. Called by the client."""
        self._loss = loss
        if self._task is not None:
            trio.lowlevel.reschedule(self._task, outcome.Error(loss))
            self._task = self._take = None

    def _hand_out(self, answer: Answer, take: Take) -> bool:
        """Let an output be taken; False: it is for the task."""
        if not isinstance(answer, Output):
            return False
        self.offset = answer.offset + len(answer.tokens)
        if answer.end is not None:
            return False
        if self._until - self.offset <= self._window // 2:
            self._until = self.offset + self._window
            self._post(Grant(self.call_id, self._until))
        return take(answer)

    def _result(self, answer: Answer) -> Output:
        if isinstance(answer, Output):
            if answer.end is not None:
                self._loss = trio.EndOfChannel("the turn has ended")
            return answer
        self._loss = (
            answer.as_error()
            if isinstance(answer, ErrorReply)
            else SyscallError(Errno.EPROTO, f"Follow was answered by {type(answer).__name__}, not by Output")
        )
        raise self._loss

    def _abandon(self, _: object) -> trio.lowlevel.Abort:
        self._task = self._take = None
        return trio.lowlevel.Abort.SUCCEEDED
