"""Command lines to syntax: a pure function from text to pipelines of words.

The grammar is a small part of the POSIX shell's: words are cut at blanks; `;` and a newline end a pipeline,
`&` ends one and puts it in the background, `&&` and `||` make the next one depend on how it ended; `|` joins
commands, `<`, `>` and `>>` take files; `#` begins a comment. Quotes work as in sh: nothing is special between
single quotes; between double quotes a backslash escapes `"`, `\\`, `$`, `` ` `` and a newline. `$NAME`,
`${NAME}`, `$?`, `$!` and `$(commands)` stand for text, and never for more than one word. What sh has and this
has not is refused by name rather than passed on as text.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from shell.llmsh.scanner import Incomplete, ParseError, Scanner
from shell.llmsh.syntax import Operator, PartialCommand, Pipeline, Redirection, SimpleCommand, Word

__all__ = ["Incomplete", "ParseError", "parse", "parse_partial", "quote"]

REDIRECTIONS = ("<", ">", ">>")
JOINTS = ("|", "&&", "||")  # after which a newline ends nothing
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%^")


def parse(text: str) -> tuple[Pipeline, ...]:
    """Parse a line or a script.

    Returns:
        The pipelines in order; none for blanks and comments.

    Raises:
        Incomplete: the text ends inside a quotation, or after an operator that a command must follow.
        ParseError: an operator that is not supported, or one without the command or file that it needs.
    """
    return _Parser(text, Scanner(text).scan()).parse()


def parse_partial(text: str) -> PartialCommand:
    """Parse as much of a text as there is, up to a cursor at its end. Never raises."""
    scanner = Scanner(text)
    try:
        tokens = scanner.scan()
    except Incomplete:
        tokens = [*scanner.tokens, Word(scanner.current, scanner.word_start, len(text))]
    except ParseError:
        return PartialCommand(("",), "", len(text))  # nothing can follow
    words: list[Word] = []
    target: Word | None = None  # of the last redirection
    is_target = False
    for token in tokens:
        if isinstance(token, Operator):
            is_target = token.text in REDIRECTIONS
            if not is_target:
                words.clear()
        elif is_target:
            target, is_target = token, False
        else:
            words.append(token)
    whole = tuple(word.text for word in words)
    if target is not None and target.end == len(text):
        return PartialCommand(whole, target.text, target.start, wants_file=True)
    if not is_target and words and words[-1].end == len(text):
        return PartialCommand(whole[:-1], whole[-1], words[-1].start)
    return PartialCommand(whole, "", len(text), wants_file=is_target)


def quote(text: str) -> str:
    """Write a text so that it parses back as one word."""
    if text and set(text) <= PLAIN:
        return text
    return "'" + text.replace("'", "'\\''") + "'"


@attrs.define(eq=False)
class _Parser:
    """Puts tokens together."""

    text: str
    tokens: Sequence[Word | Operator]
    _pipelines: list[Pipeline] = attrs.field(factory=list)
    _commands: list[SimpleCommand] = attrs.field(factory=list)  # of the pipeline in progress
    _words: list[Word] = attrs.field(factory=list)  # of the command in progress
    _redirections: list[Redirection] = attrs.field(factory=list)
    _condition: str = ""  # of the pipeline in progress
    _start: int = 0  # where that begins, once it has
    _redirect: Operator | None = None  # waits for its file
    _joint: Operator | None = None  # the last operator, when a command must follow it

    def parse(self) -> tuple[Pipeline, ...]:
        end = 0  # of the last word
        for token in self.tokens:
            if isinstance(token, Word):
                self._take_word(token)
                end = token.end
            elif self._redirect is not None:
                raise ParseError(f"no file name after '{self._redirect.text}'", self._redirect.start + 1)
            elif token.text in REDIRECTIONS:
                self._begin_redirection(token)
            elif not (token.text == "\n" and self._joint is not None):
                self._take_separator(token, end)
        if self._redirect is not None:
            raise ParseError(f"no file name after '{self._redirect.text}'", self._redirect.start + 1)
        if self._joint is not None:
            raise Incomplete(f"no command after '{self._joint.text}'", self._joint.start + 1)
        if self._has_command:
            self._end_pipeline(end, is_background=False)
        return tuple(self._pipelines)

    @property
    def _has_command(self) -> bool:
        return bool(self._words or self._redirections)

    def _take_word(self, word: Word) -> None:
        if not self._has_command and not self._commands:
            self._start = word.start if self._redirect is None else self._redirect.start
        self._joint = None
        if self._redirect is None:
            self._words.append(word)
        else:
            self._redirections.append(Redirection(self._redirect.text, word))
            self._redirect = None

    def _begin_redirection(self, operator: Operator) -> None:
        words = self._words
        if words and words[-1].end == operator.start and words[-1].text.isdecimal() and len(words) > 1:
            raise ParseError(
                f"a number before '{operator.text}' is not supported: only standard output can go to a file; "
                "write a blank between them when it is an argument",
                words[-1].start + 1,
            )
        self._redirect = operator

    def _take_separator(self, operator: Operator, end: int) -> None:
        if not self._has_command:
            if operator.text in JOINTS or operator.text == "&" or self._joint is not None:
                raise ParseError(f"no command before '{operator.text}'", operator.start + 1)
            return  # an empty command
        if operator.text == "|":
            self._end_command()
        elif operator.text == "&" and self._condition:
            raise ParseError(
                f"'&' after '{self._condition}' is not supported: only one pipeline goes to the background",
                operator.start + 1,
            )
        else:
            self._end_pipeline(end, is_background=operator.text == "&")
            self._condition = operator.text if operator.text in JOINTS else ""
        self._joint = operator if operator.text in JOINTS else None

    def _end_command(self) -> None:
        if not self._words:
            redirection = self._redirections[0]
            raise ParseError(f"no command for '{redirection.operator}'", redirection.target.start + 1)
        self._commands.append(SimpleCommand(tuple(self._words), tuple(self._redirections)))
        self._words.clear()
        self._redirections.clear()

    def _end_pipeline(self, end: int, *, is_background: bool) -> None:
        self._end_command()
        source = self.text[self._start : end]
        self._pipelines.append(Pipeline(tuple(self._commands), is_background, source, self._condition))
        self._commands.clear()
        self._condition = ""
