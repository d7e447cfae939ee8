"""What can go wrong with a command, and the exit code that says so."""

from __future__ import annotations

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NO_KERNEL = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in other shells
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class CommandError(Exception):
    """A command cannot be carried out; the message is for the user."""

    code = EXIT_ERROR


class UsageError(CommandError):
    """The command was called in a wrong way."""

    code = EXIT_USAGE


class NoKernel(CommandError):
    """No kernel answers, or it went away; the message names the socket."""

    code = EXIT_NO_KERNEL


class Interrupted(CommandError):
    """Ctrl-C ended a part of what was to be done; that was said already."""

    code = EXIT_INTERRUPTED


def first_leaf(group: BaseException) -> BaseException:
    """Return the exception that a group holds; the first, when there are several."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
