"""What a command line consists of: words, redirections, commands, pipelines."""

from __future__ import annotations

import re

import attrs

ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")


@attrs.frozen
class Text:
    """A part of a word that stands for itself."""

    text: str


@attrs.frozen
class Variable:
    """`$NAME`, `${NAME}`, `$?` or `$!`."""

    name: str


@attrs.frozen
class Substitution:
    """`$(commands)`: what they write, without the newlines at its end."""

    source: str


Part = Text | Variable | Substitution


@attrs.frozen
class Word:
    """One word, and where it stood: text[start:end].

    Attributes:
        text: quotes removed, and `$…` as it was written.
        parts: what it is made of.
        assigns: the NAME of a word that is written NAME=value; "" for any other.
    """

    text: str
    start: int
    end: int
    parts: tuple[Part, ...] = ()
    assigns: str = ""


@attrs.frozen
class Operator:
    """`;`, a newline, `&`, `&&`, `||`, `|`, `<`, `>` or `>>`."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + len(self.text)


@attrs.frozen
class Redirection:
    """`< file`, `> file` or `>> file`."""

    operator: str
    target: Word


@attrs.frozen
class SimpleCommand:
    """A command's name and arguments, and the files it reads and writes."""

    words: tuple[Word, ...]
    redirections: tuple[Redirection, ...] = ()

    @property
    def name(self) -> str:
        """The first word, as it was written."""
        return self.words[0].text

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words after the name, as they were written."""
        return tuple(word.text for word in self.words[1:])


@attrs.frozen
class Pipeline:
    """What one job runs: commands of which each reads what the one before it writes.

    Attributes:
        commands: at least one.
        is_background: `&` ended it.
        source: as it was written.
        condition: "&&" or "||" when it depends on how the one before it ended; else "".
    """

    commands: tuple[SimpleCommand, ...]
    is_background: bool
    source: str
    condition: str = ""


@attrs.frozen
class PartialCommand:
    """The command that a text breaks off in: for completion.

    Attributes:
        words: whole words before the cursor.
        current: the word at the cursor, quotes removed; "" after a blank.
        start: where that word begins in the text.
        wants_file: the word follows `<`, `>` or `>>`.
    """

    words: tuple[str, ...]
    current: str
    start: int
    wants_file: bool = False
