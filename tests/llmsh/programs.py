"""What the processes of these tests do."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from syscalls.process import ExitStatus
from tests.scripted_kernel import END, STOPPED_BY_MODEL, Program, ScriptedProcess


def say(text: str, end: ExitStatus = STOPPED_BY_MODEL) -> Program:
    """Make a program that says a text and ends in some way."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say(text)
        if end == STOPPED_BY_MODEL:
            await process.emit(END)
        return end

    return program


def answer_turns(*answers: str) -> Program:
    """Make a program that gives one answer for each turn, the last of them for ever."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        turn = process.output.count(END)
        await process.say(answers[min(turn, len(answers) - 1)])
        await process.emit(END)
        return STOPPED_BY_MODEL

    return program


@attrs.define(eq=False)
class Gate:
    """A program that says one text, waits until the test opens the gate, and says another."""

    first: str = "begun"
    second: str = " and done"
    reached: trio.Event = attrs.field(factory=trio.Event)
    opened: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, process: ScriptedProcess) -> ExitStatus:
        """Be the program."""
        await process.say(self.first)
        self.reached.set()
        await self.opened.wait()
        await process.say(self.second)
        await process.emit(END)
        return STOPPED_BY_MODEL


async def wait_until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds; the suite's timeout ends a wait in vain."""
    while not condition():  # noqa: ASYNC110  the conditions are about text on a screen, which tells nobody
        await trio.sleep(0.001)
