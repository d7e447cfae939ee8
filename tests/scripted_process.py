"""A process that outputs what a test's program tells it to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

from syscalls.process import ExitStatus, Spawn
from syscalls.sampling import TokenLogprobs
from tests.byte_model import CONTEXT, END, read_tokens
from tests.syscalls.fake_kernel import FakeSession

STOPPED_BY_MODEL = ExitStatus("stop", stop_token=END)


@attrs.define(eq=False)
class ScriptedProcess:
    """One process. Programs use `say`, `emit` and the fields; the kernel does the rest."""

    pid: int
    spawn: Spawn
    seed: int
    session: FakeSession
    sample: int = 0  # index among the samples of its spawn
    parent: int | None = None
    label: str = ""
    tokens: list[int] = attrs.field(factory=list)  # prompt and output of all turns
    output: list[int] = attrs.field(factory=list)
    logprobs: list[TokenLogprobs] = attrs.field(factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    vector: bytes = b""
    end: ExitStatus | None = None  # of the process, or of the turn that is over
    is_zombie: bool = False
    is_stopped: bool = False
    nice: int = 0
    num_prompt_tokens: int = 0
    max_tokens: int = CONTEXT
    num_turn_output: int = 0
    num_computed: int | None = None  # as stat tells; None: all of its tokens
    num_cached_tokens: int = 0
    num_read: int = 0  # tokens of its output that have arrived at its reader
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)  # of the running turn
    _changed: trio.Event = attrs.field(factory=trio.Event)

    @property
    def prompt(self) -> str:
        """Everything it was told and has said, special tokens spelled out."""
        return read_tokens(self.tokens)

    @property
    def state(self) -> str:
        """As ps prints it."""
        if self.is_zombie:
            return "ZOMBIE"
        if self.is_stopped:
            return "STOPPED"
        return "BLOCKED(Input)" if self.end is not None else "RUNNING"

    async def say(self, text: str) -> None:
        """Output a text byte by byte."""
        await self.emit(*text.encode())

    async def emit(self, *tokens: int, logprobs: tuple[TokenLogprobs, ...] = ()) -> None:
        """Output tokens one by one, each visible to readers at once; ends the turn at max_tokens."""
        for index, token in enumerate(tokens):
            while self.is_stopped:
                await self.wait_change()
            self.output.append(token)
            self.tokens.append(token)
            if logprobs:
                self.logprobs.append(logprobs[index])
            self.num_turn_output += 1
            self.change()
            if self.num_turn_output >= self.max_tokens:
                raise LimitReached
            await trio.lowlevel.checkpoint()

    async def wait_read(self) -> None:
        """Wait until all that was output has arrived at its reader, who asks for more."""
        while self.num_read < len(self.output):
            await self.wait_change()

    async def wait_change(self) -> None:
        """Wait until anything about the process changes."""
        await self._changed.wait()

    def change(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = trio.Event()


class LimitReached(Exception):
    """The turn has output max_tokens."""


Program = Callable[[ScriptedProcess], Awaitable[ExitStatus]]


async def say_hello(process: ScriptedProcess) -> ExitStatus:
    """The default program: a greeting and an end token."""
    await process.say("hello")
    await process.emit(END)
    return STOPPED_BY_MODEL
