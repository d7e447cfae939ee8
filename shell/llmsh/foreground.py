"""What is before the person at the terminal: what Ctrl-C ends, what Ctrl-Z stops, and what is to be said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from shell.llmsh.render import Screen
from shell.llmsh.terminal import echoes_interrupt

WIPE_INTERRUPT = "\b\b\x1b[K"  # two columns back, and nothing behind them


@attrs.define(eq=False)
class Foreground:
    """One for each shell, whatever its commands run in.

    Attributes:
        screen: the shell's own.
        is_interactive: there is a person.
        has_job: what is shown now can be stopped, and kept as a job.
        was_suspended: Ctrl-Z, not Ctrl-C, ended what was shown last.
        was_redrawn: what was interrupted last replaced what it had shown, again and again.
        is_reading: the prompt waits for a line.
    """

    screen: Screen
    is_interactive: bool
    has_job: bool = False
    was_suspended: bool = False
    was_redrawn: bool = False
    is_reading: bool = False
    _notices: list[str] = attrs.field(factory=list)  # held back while a command runs
    _scopes: list[trio.CancelScope] = attrs.field(factory=list)  # what Ctrl-C ends, innermost last

    @contextmanager
    def interruptible(self) -> Iterator[trio.CancelScope]:
        """Let Ctrl-C cancel the block, and nothing around it."""
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                yield scope
            finally:
                self._scopes.pop()

    def interrupt(self) -> None:
        """Ctrl-C: cancel the innermost interruptible block. Does nothing at the prompt."""
        if self._scopes:
            self.was_suspended = self.was_redrawn = False
            self._scopes[-1].cancel()

    def suspend(self) -> None:
        """Ctrl-Z: stop the foreground job and return to the prompt. Does nothing without one."""
        if self._scopes and self.has_job:
            self.was_suspended, self.was_redrawn = True, False
            self._scopes[-1].cancel()

    def show_interrupt(self) -> None:
        """Leave the line in which ^C stands, or write it where the terminal does not.

        From what was drawn over and over it is wiped.
        """
        if self.is_interactive and echoes_interrupt():
            if self.was_redrawn:
                self.screen.write_raw(WIPE_INTERRUPT)
            else:
                self.screen.write("\n")
        elif not self.was_redrawn:
            self.screen.line("^Z" if self.was_suspended else "^C")

    def notify(self, text: str) -> None:
        """Tell a person what no command asked for: at once at the prompt, else before the next one."""
        if not self.is_interactive:
            return
        if self.is_reading:
            self.screen.line(text)
        else:
            self._notices.append(text)

    def show_notices(self) -> None:
        """Write what was held back."""
        for notice in self._notices:
            self.screen.line(notice)
        self._notices.clear()
