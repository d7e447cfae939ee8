"""Calls as Mistral's models write them: JSON objects, or names with arguments, behind `[TOOL_CALLS]`."""

from __future__ import annotations

import re
from collections.abc import Generator

from shell.gateway.parsers.style import CallStyle
from shell.gateway.parsers.tool_parser import ToolParser, read_arguments

MARK, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
MAX_HEAD = 256  # characters between the mark and the arguments

_HEAD = re.compile(r"([\w./:-]+)(?:\[CALL_ID\][\w-]+)?(?:\[ARGS\])?[ \t\r\n]*")


class MistralParser(ToolParser):
    """`[TOOL_CALLS] [{"name": "f", "arguments": {…}}, …]`; since version 11 of their tokenizer
    `[TOOL_CALLS]f[ARGS]{…}`, repeated for each call."""

    MARKUP = (MARK, ARGUMENTS, CALL_ID)
    STYLE = CallStyle(opening=f"{MARK} [", separator=", ", closing="]")

    def _read(self) -> Generator[None, None, None]:
        while (yield from self._tell_until(MARK)):
            at = yield from self._skip_blanks(self._held.index(MARK) + len(MARK))
            if self._held.startswith("[", at):
                is_read = yield from self._read_list(at + 1)
            elif self._held.startswith("{", at):
                is_read = yield from self._read_call(at)
            else:
                is_read = yield from self._read_named(at)
            if is_read:
                yield from self._drop_blanks()

    def _read_named(self, at: int) -> Generator[None, None, bool]:
        while (brace := self._held.find("{", at, at + MAX_HEAD)) < 0:
            if self._is_over and self._is_certain:  # cut before its name was known: there is nothing to tell
                self._drop(len(self._held))
                return False
            if self._is_over or len(self._held) >= at + MAX_HEAD:
                self._tell(at)
                return False
            yield
        head = _HEAD.fullmatch(self._held, at, brace)
        if head is None:
            self._tell(at)
            return False
        if self._is_certain:
            self._drop(brace)
            return (yield from self._stream_arguments(head[1]))
        end = yield from self._read_object(brace)
        if end is None:
            return False
        arguments = read_arguments(self._held[brace:end])
        if arguments is None:
            self._tell(end)
            return False
        self._drop(end)
        self._tell_call(head[1], arguments)
        return True


class MistralNamedParser(MistralParser):
    """The same for models that were taught the newer form."""

    STYLE = CallStyle(before_name=MARK, before_arguments=ARGUMENTS, after_arguments="", separator="")
