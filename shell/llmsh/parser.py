"""Command lines to syntax: a pure function from text to pipelines of words.

The grammar is a small part of the POSIX shell's: words are cut at blanks, `;` and newline end a command, `&`
ends one and puts it in the background, `#` begins a comment. Quotes work as in sh: nothing is special between
single quotes; between double quotes a backslash escapes `"`, `\\`, `$`, `` ` `` and a newline. Operators that
have no meaning yet are refused by name rather than passed on as text.
"""

from __future__ import annotations

import attrs

BLANKS = " \t\r"
SEPARATORS = ";\n"
REFUSED = {
    "||": "'||' is not supported",
    "&&": "'&&' is not supported",
    "|": "pipes are not supported",
    ">": "redirection is not supported",
    "<": "redirection is not supported",
}
ESCAPABLE_IN_DOUBLE_QUOTES = '"\\$`\n'
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%^")


class ParseError(ValueError):
    """The line is no valid command. `column` counts from 1."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(f"syntax error at column {column}: {message}")
        self.column = column


class Incomplete(ParseError):
    """The text ends inside a quotation or after a backslash: more of it could make it valid."""


@attrs.frozen
class Word:
    """One word, quotes removed, and where it stood: text[start:end]."""

    text: str
    start: int
    end: int


@attrs.frozen
class Operator:
    """`;`, `&` or a newline."""

    text: str
    start: int


@attrs.frozen
class SimpleCommand:
    """A command's name and arguments."""

    words: tuple[Word, ...]

    @property
    def name(self) -> str:
        """The first word."""
        return self.words[0].text

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words after the name."""
        return tuple(word.text for word in self.words[1:])


@attrs.frozen
class Pipeline:
    """What one job runs. The grammar joins no commands yet, so there is exactly one."""

    commands: tuple[SimpleCommand, ...]
    is_background: bool
    source: str  # as it was written


@attrs.frozen
class PartialCommand:
    """The command that a text breaks off in: for completion."""

    words: tuple[str, ...]  # whole words before the cursor
    current: str  # the word at the cursor, quotes removed; "" after a blank
    start: int  # where that word begins in the text


def parse(text: str) -> tuple[Pipeline, ...]:
    """Parse a line or a script.

    Returns:
        The pipelines in order; none for blanks and comments.

    Raises:
        Incomplete: the text ends inside a quotation.
        ParseError: an operator that is not supported, or `&` without a command.
    """
    pipelines = []
    words: list[Word] = []

    def finish(is_background: bool) -> None:
        if words:
            source = text[words[0].start : words[-1].end]
            pipelines.append(Pipeline((SimpleCommand(tuple(words)),), is_background, source))
            words.clear()

    for token in _Scanner(text).scan():
        if isinstance(token, Word):
            words.append(token)
        elif token.text == "&" and not words:
            raise ParseError("no command before '&'", token.start + 1)
        else:
            finish(is_background=token.text == "&")
    finish(is_background=False)
    return tuple(pipelines)


def parse_partial(text: str) -> PartialCommand:
    """Parse as much of a text as there is, up to a cursor at its end. Never raises."""
    scanner = _Scanner(text)
    try:
        tokens = scanner.scan()
    except Incomplete:
        tokens = [*scanner.tokens, Word(scanner.current, scanner.word_start, len(text))]
    except ParseError:
        return PartialCommand(("",), "", len(text))  # nothing can follow
    words: list[Word] = []
    for token in tokens:
        if isinstance(token, Word):
            words.append(token)
        else:
            words.clear()
    if words and words[-1].end == len(text):
        *whole, last = words
        return PartialCommand(tuple(word.text for word in whole), last.text, last.start)
    return PartialCommand(tuple(word.text for word in words), "", len(text))


def quote(text: str) -> str:
    """Write a text so that it parses back as one word."""
    if text and set(text) <= PLAIN:
        return text
    return "'" + text.replace("'", "'\\''") + "'"


class _Scanner:
    """Cuts text into words and operators, left to right.

    When it raises Incomplete, `tokens` holds what came before, and `current` and `word_start` describe the
    word that was cut off.
    """

    def __init__(self, text: str) -> None:
        self.tokens: list[Word | Operator] = []
        self.current = ""
        self.word_start = 0
        self._text = text
        self._at = 0

    def scan(self) -> list[Word | Operator]:
        """Return all tokens. Raises ParseError, Incomplete."""
        text = self._text
        while self._at < len(text):
            character = text[self._at]
            if character in BLANKS:
                self._at += 1
            elif text.startswith("\\\n", self._at):  # a continued line
                self._at += 2
            elif character == "#":
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            elif (operator := self._match_operator()) is not None:
                self.tokens.append(Operator(operator, self._at))
                self._at += 1
            else:
                self.tokens.append(self._scan_word())
        return self.tokens

    def _match_operator(self) -> str | None:
        for refused, why in REFUSED.items():
            if self._text.startswith(refused, self._at):
                raise ParseError(f"{why}; quote {refused} to write it as text", self._at + 1)
        character = self._text[self._at]
        return character if character in SEPARATORS or character == "&" else None

    def _scan_word(self) -> Word:
        self.current = ""
        self.word_start = self._at
        text = self._text
        while self._at < len(text):
            character = text[self._at]
            if character in BLANKS or self._match_operator() is not None:
                break
            if character == "'":
                self._scan_single_quoted()
            elif character == '"':
                self._scan_double_quoted()
            elif character == "\\":
                self._scan_escape()
            else:
                self.current += character
                self._at += 1
        return Word(self.current, self.word_start, self._at)

    def _scan_single_quoted(self) -> None:
        opened = self._at
        end = self._text.find("'", opened + 1)
        self.current += self._text[opened + 1 : end if end >= 0 else None]
        if end < 0:
            raise Incomplete("a ' is not closed", opened + 1)
        self._at = end + 1

    def _scan_double_quoted(self) -> None:
        opened = self._at
        self._at += 1
        while self._at < len(self._text):
            character = self._text[self._at]
            follower = self._text[self._at + 1 : self._at + 2]
            if character == '"':
                self._at += 1
                return
            if character == "\\" and follower and follower in ESCAPABLE_IN_DOUBLE_QUOTES:
                self.current += "" if follower == "\n" else follower
                self._at += 2
            else:
                self.current += character
                self._at += 1
        raise Incomplete('a " is not closed', opened + 1)

    def _scan_escape(self) -> None:
        escaped = self._text[self._at + 1 : self._at + 2]
        if not escaped:
            raise Incomplete("nothing follows the backslash", self._at + 1)
        self.current += "" if escaped == "\n" else escaped
        self._at += 2
