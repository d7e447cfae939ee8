"""What `run` is told about the form of its output."""

from __future__ import annotations

import trio

from shell.llmsh.errors import CommandError, UsageError
from shell.llmsh.options import Arguments, Option

FORM_OPTIONS = (
    Option(("--schema",), "output is JSON that obeys the JSON schema in a file", "FILE", completes="file"),
    Option(("--regex",), "output matches a regular expression as a whole", "REGEX"),
    Option(("--choice",), "output is this text, or another --choice", "TEXT", is_repeated=True),
    Option(("--grammar",), "output follows the grammar in a file, in GBNF or Lark", "FILE", completes="file"),
)


async def read_form(arguments: Arguments) -> str | None:
    """Return the grammar that `FORM_OPTIONS` ask for; None: the output is free.

    Raises:
        UsageError: two ask for something, or one for what cannot be enforced.
        CommandError: a file cannot be read.
    """
    given = [option for option in FORM_OPTIONS if arguments[option.name]]
    if not given:
        return None
    flag = given[0].flags[0]
    if len(given) > 1:
        raise UsageError(f"{flag} and {given[1].flags[0]} exclude each other")
    value = arguments[given[0].name]
    if flag in ("--schema", "--grammar"):
        value = await _read_file(value)
    # Long ones take a while, and the screen goes on meanwhile.
    return await trio.to_thread.run_sync(_compile, flag, value)


async def _read_file(name: str) -> str:
    try:
        return await (await trio.Path(name).expanduser()).read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{name} is not UTF-8") from None


def _compile(flag: str, value: str | tuple[str, ...]) -> str:
    """Make a grammar of an option's value. Raises UsageError."""
    # Here, for its library takes long to import, and few commands ask for a form.
    from shell.llmsh.commands.form_grammar import compile_form
    from syscalls.text.grammar import BadGrammar

    try:
        return compile_form(flag, value)
    except BadGrammar as error:
        raise UsageError(f"{flag}: {error}") from None
