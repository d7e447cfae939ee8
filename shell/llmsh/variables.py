"""Variables, and the text that words with them stand for."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping

import attrs

from shell.llmsh.errors import UsageError
from shell.llmsh.options import suggest
from shell.llmsh.syntax import Part, Substitution, Text, Variable, Word


@attrs.define(eq=False)
class Variables:
    """The shell's own variables; behind them those of the environment, which it reads and never changes."""

    environment: Mapping[str, str] = attrs.field(factory=lambda: os.environ)
    _own: dict[str, str] = attrs.field(factory=dict)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(sorted(self._own.items()))

    @property
    def names(self) -> list[str]:
        """Every name that has a value."""
        return sorted({*self._own, *self.environment})

    def set(self, name: str, value: str) -> None:
        """Give a variable a value."""
        self._own[name] = value

    def get(self, name: str) -> str:
        """Return a value. Raises UsageError, with a suggestion: a prompt with a hole in it helps nobody."""
        if name in self._own:
            return self._own[name]
        if name in self.environment:
            return self.environment[name]
        hint = suggest(name, list(self._own)) or f"; {name}=VALUE sets it, and '$' in single quotes is text"
        raise UsageError(f"no variable {name!r}{hint}")

    def remove(self, name: str) -> None:
        """Forget a variable of the shell's own. Raises UsageError."""
        if name not in self._own:
            raise UsageError(f"no variable {name!r}{suggest(name, list(self._own)) or '; set lists them'}")
        del self._own[name]


async def expand(
    word: Word, look_up: Callable[[str], str], substitute: Callable[[str], Awaitable[str]]
) -> str:
    """Return the text that a word stands for: always one word, whatever the values hold.

    Args:
        word: of a command line.
        look_up: a variable's value.
        substitute: what some commands write.
    """

    async def text_of(part: Part) -> str:
        match part:
            case Text(text):
                return text
            case Variable(name):
                return look_up(name)
            case Substitution(source):
                return (await substitute(source)).rstrip("\n")

    return "".join([await text_of(part) for part in word.parts])
