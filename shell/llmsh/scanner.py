"""Text to words and operators, left to right."""

from __future__ import annotations

import re

from shell.llmsh.syntax import ASSIGNMENT, Operator, Part, Substitution, Text, Variable, Word

BLANKS = " \t\r"
OPERATORS = (";", "\n", "&&", "&", "||", "|", ">>", ">", "<")  # a longer one before what it begins with
REFUSED = {
    "<<": "'<<' is not supported",
    ">&": "'>&' is not supported: only standard output can go to a file",
    "&>": "'&>' is not supported: only standard output can go to a file",
}
# Runs of text that stands for itself: taken whole, for a paste may have megabytes.
PLAIN = re.compile(r"""[^ \t\r\n;&|<>'"\\$()]+""")
PLAIN_IN_DOUBLE_QUOTES = re.compile(r'[^"\\$]+')
ESCAPABLE_IN_DOUBLE_QUOTES = '"\\$`\n'
VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*|[?!])|\{([A-Za-z_][A-Za-z0-9_]*|[?!])\})")


class ParseError(ValueError):
    """The line is no valid command. `column` counts from 1."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(f"syntax error at column {column}: {message}")
        self.column = column


class Incomplete(ParseError):
    """The text ends inside a quotation, or after something that another command must follow."""


class Scanner:
    """Cuts text into words and operators.

    When it raises Incomplete, `tokens` holds what came before, and `current` and `word_start` describe the
    word that was cut off.

    Args:
        text: all of it.
        start: where to begin.
        is_nested: inside `$(`: an unquoted `)` ends it, and `end` is where that stands.
    """

    def __init__(self, text: str, start: int = 0, *, is_nested: bool = False) -> None:
        self.tokens: list[Word | Operator] = []
        self.current = ""
        self.word_start = start
        self.end = len(text)
        self._text = text
        self._at = start
        self._is_nested = is_nested
        self._parts: list[Part] = []
        self._literal = ""  # the end of the word so far that stands for itself

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
            elif self._ends_here():
                self.end = self._at
                return self.tokens
            elif (operator := self._match_operator()) is not None:
                self.tokens.append(Operator(operator, self._at))
                self._at += len(operator)
            else:
                self.tokens.append(self._scan_word())
        return self.tokens

    def _ends_here(self) -> bool:
        return self._is_nested and self._text[self._at] == ")"

    def _match_operator(self) -> str | None:
        for refused, why in REFUSED.items():
            if self._text.startswith(refused, self._at):
                raise ParseError(f"{why}; quote {refused} to write it as text", self._at + 1)
        return next((each for each in OPERATORS if self._text.startswith(each, self._at)), None)

    # --- words -------------------------------------------------------------------------------------------

    def _scan_word(self) -> Word:
        self.current = self._literal = ""
        self._parts = []
        self.word_start = self._at
        text = self._text
        while self._at < len(text):
            character = text[self._at]
            if (run := PLAIN.match(text, self._at)) is not None:
                self._take(run.group(), len(run.group()))
                continue
            if character in BLANKS or self._ends_here() or self._match_operator() is not None:
                break
            if character == "'":
                self._scan_single_quoted()
            elif character == '"':
                self._scan_double_quoted()
            elif character == "\\":
                self._scan_escape()
            elif character == "$":
                self._scan_dollar()
            else:
                self._take(character)
        self._end_literal()
        assigns = ASSIGNMENT.match(text, self.word_start, self._at)
        return Word(
            self.current, self.word_start, self._at, tuple(self._parts), assigns.group(1) if assigns else ""
        )

    def _take(self, text: str, length: int = 1) -> None:
        """The next `length` characters stand for `text`."""
        self.current += text
        self._literal += text
        self._at += length

    def _end_literal(self) -> None:
        if self._literal:
            self._parts.append(Text(self._literal))
            self._literal = ""

    def _scan_single_quoted(self) -> None:
        opened = self._at
        end = self._text.find("'", opened + 1)
        if end < 0:
            self.current += self._text[opened + 1 :]
            raise Incomplete("a ' is not closed", opened + 1)
        self._take(self._text[opened + 1 : end], end + 1 - opened)

    def _scan_double_quoted(self) -> None:
        opened = self._at
        self._at += 1
        while self._at < len(self._text):
            if (run := PLAIN_IN_DOUBLE_QUOTES.match(self._text, self._at)) is not None:
                self._take(run.group(), len(run.group()))
                continue
            character = self._text[self._at]
            follower = self._text[self._at + 1 : self._at + 2]
            if character == '"':
                self._at += 1
                return
            if character == "\\" and follower and follower in ESCAPABLE_IN_DOUBLE_QUOTES:
                self._take("" if follower == "\n" else follower, 2)
            elif character == "$":
                self._scan_dollar()
            else:
                self._take(character)
        raise Incomplete('a " is not closed', opened + 1)

    def _scan_escape(self) -> None:
        escaped = self._text[self._at + 1 : self._at + 2]
        if not escaped:
            raise Incomplete("nothing follows the backslash", self._at + 1)
        self._take("" if escaped == "\n" else escaped, 2)

    def _scan_dollar(self) -> None:
        """A variable, a substitution, or a dollar that stands for itself, as in $5."""
        if (found := VARIABLE.match(self._text, self._at)) is not None:
            self._add_part(Variable(found.group(1) or found.group(2)), found.end())
        elif self._text.startswith("$(", self._at):
            nested = Scanner(self._text, self._at + 2, is_nested=True)
            try:
                nested.scan()
            except Incomplete as error:
                self.current += self._text[self._at :]
                raise Incomplete(f"a $( is not closed, where {error}", self._at + 1) from error
            if nested.end == len(self._text):
                self.current += self._text[self._at :]
                raise Incomplete("a $( is not closed", self._at + 1)
            self._add_part(Substitution(self._text[self._at + 2 : nested.end]), nested.end + 1)
        elif self._text.startswith("${", self._at):
            raise ParseError("after ${ comes a variable's name and a }", self._at + 1)
        else:
            self._take("$")

    def _add_part(self, part: Part, end: int) -> None:
        self._end_literal()
        self._parts.append(part)
        self.current += self._text[self._at : end]
        self._at = end
