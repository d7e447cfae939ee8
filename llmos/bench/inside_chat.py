"""A chat from inside the kernel's process, for simulated devices.

A client's socket would cost more there than everything else together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from llmos.bench.chats import Chat, TurnTimes
from llmos.bench.conversations import Conversation
from llmos.kernel.system import System
from llmos.proc.pcb import Process, Reader
from llmos.sched.core import Core
from llmos.sched.messages import Enqueue, Kill, WriteInput
from syscalls.errno import SyscallError
from syscalls.sampling import Sampling


@asynccontextmanager
async def open_inside_chat(system: System, core: Core, conversation: Conversation) -> AsyncIterator[Chat]:
    """The process of one conversation, on a device of this process's kernel."""
    chat = InsideChat(system, core)
    try:
        yield chat
    finally:
        chat.end()


@attrs.define(eq=False)
class InsideChat:
    """A chat with a process that it makes itself, as the kernel's handlers would."""

    system: System
    core: Core
    process: Process | None = None

    async def say(self, tokens: Sequence[int], num_output_tokens: int, times: TurnTimes) -> Sequence[int]:
        """See Chat."""
        if self.process is None:
            self.process = self._make_process(tokens, num_output_tokens)
            first = 0
            self.core.mailbox.send_nowait(Enqueue([self.process]))
        else:
            first = len(self.process.output)
            self.core.mailbox.send_nowait(
                WriteInput(self.process, tuple(tokens), num_output_tokens, _must_succeed)
            )
        process, is_over = self.process, trio.Event()

        def wake(ready: Process) -> None:
            num_new = len(ready.output) - first - len(times.arrivals)
            times.arrivals += [trio.current_time()] * num_new
            if len(times.arrivals) < num_output_tokens:
                ready.readers.append(Reader(len(ready.output), wake))
            else:
                is_over.set()

        process.readers.append(Reader(first, wake))
        await is_over.wait()
        return process.output[first:]

    def end(self) -> None:
        """Kill the process and reap it."""
        if self.process is not None:
            self.process.exit_callbacks.append(self.system.reap)
            self.core.mailbox.send_nowait(Kill(self.process, "the conversation is over", _must_succeed))

    def _make_process(self, tokens: Sequence[int], num_output_tokens: int) -> Process:
        (pid,) = self.system.table.new_pids(1)
        now = trio.current_time()
        process = Process(
            pid=pid,
            tenant="bench",
            session=None,
            model="sim",
            device=self.core.name,
            sampling=Sampling(seed=pid),
            stop_tokens=frozenset(),
            interactive=True,
            spawned_at=now,
            turn_started_at=now,
            arrival=pid,
            tokens=list(tokens),
            turn_start=len(tokens),
            max_tokens=num_output_tokens,
            num_prompt_tokens=len(tokens),
            num_uncharged=len(tokens),
        )
        self.system.enter(process)
        return process


def _must_succeed(error: SyscallError | None) -> None:
    if error is not None:
        raise error
