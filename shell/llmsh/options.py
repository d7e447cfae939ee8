"""A command's options: declared once, used to parse arguments, to write help, and to complete."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from shell.llmsh.errors import UsageError

OPTION_LIKE = re.compile(r"--[a-zA-Z][\w-]*(=.*)?|-[a-zA-Z]", re.DOTALL)
LONGEST_SUGGESTED = 100  # characters of a word that may be a name mistyped


@attrs.frozen
class Option:
    """One option.

    Attributes:
        flags: spellings, the main one first: ("--follow", "-f").
        help: what it does, in a few words.
        metavar: name of its value in help; "" for a switch.
        convert: makes the value from its text; a ValueError says what is wrong.
        is_repeated: may be given several times; the value is the tuple of all.
        completes: what its value names: "model", "image", "tenant", "file" or "".
    """

    flags: tuple[str, ...]
    help: str
    metavar: str = ""
    convert: Callable[[str], Any] = str
    is_repeated: bool = False
    completes: str = ""

    @property
    def name(self) -> str:
        """Key of its value in `Arguments`."""
        return self.flags[0].lstrip("-").replace("-", "_")

    @property
    def synopsis(self) -> str:
        """Spellings and value, as help shows them."""
        return ", ".join(self.flags) + (f" {self.metavar}" if self.metavar else "")


@attrs.frozen
class Arguments:
    """A command's arguments, parsed. An option that was not given is None, or () when it may repeat."""

    options: Mapping[str, Any]
    operands: tuple[str, ...]
    source: str = ""  # the command as it was written
    is_background: bool = False

    def __getitem__(self, name: str) -> Any:
        return self.options[name]


def parse_arguments(words: Sequence[str], options: Sequence[Option], *, is_prefix: bool = False) -> Arguments:
    """Sort words into options and operands, in any order; `--` ends the options.

    With `is_prefix` the first operand ends them too: what follows is another command.

    A word that begins with a dash but is not shaped like an option (`-5`, `-`, `- milk`) is an operand.

    Raises:
        UsageError: an option that is not known, lacks its value, has a bad one, or is given twice.
    """
    by_flag = {flag: option for option in options for flag in option.flags}
    values: dict[str, Any] = {option.name: () if option.is_repeated else None for option in options}
    operands: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            operands += rest
            break
        if not OPTION_LIKE.fullmatch(word):
            operands.append(word)
            if is_prefix:
                operands += rest
                break
            continue
        flag, has_value, text = word.partition("=")
        option = by_flag.get(flag)
        if option is None:
            hint = suggest(flag, by_flag) or "; write -- before text that looks like an option"
            raise UsageError(f"unknown option {flag!r}{hint}")
        if option.metavar:
            if not has_value and not rest:
                raise UsageError(f"{flag} needs a value: {option.synopsis}")
            value = _convert(option, flag, text if has_value else rest.pop(0))
        elif has_value:
            raise UsageError(f"{flag} takes no value")
        else:
            value = True
        if option.is_repeated:
            values[option.name] += (value,)
        elif values[option.name] is not None:
            raise UsageError(f"{flag} is given twice")
        else:
            values[option.name] = value
    return Arguments(values, tuple(operands))


def suggest(wrong: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Return ": did you mean 'x'?" when something known is close, else ""."""
    if len(wrong) > LONGEST_SUGGESTED:
        return ""  # a paste, and comparing takes its length
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]!r}?" if close else ""


def _convert(option: Option, flag: str, text: str) -> Any:
    try:
        return option.convert(text)
    except ValueError as error:
        reason = str(error) if option.convert not in (int, float) else ""
        wanted = {int: "a whole number", float: "a number"}.get(option.convert, "")  # type: ignore[call-overload]
        raise UsageError(f"{flag} {text!r}: {reason or f'{wanted} is needed'}") from None
