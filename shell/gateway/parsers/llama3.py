"""Calls as Llama 3.1, 3.2 and 3.3 write them: JSON objects from the first character on, or behind a tag."""

from __future__ import annotations

from collections.abc import Generator

from shell.gateway.parsers.style import CallStyle
from shell.gateway.parsers.tool_parser import ToolParser

TAG = "<|python_tag|>"


class Llama3Parser(ToolParser):
    """`{"name": "f", "parameters": {…}}`, more behind `;` or a blank, with `<|python_tag|>` or without.

    Without the tag only a text that begins with the object is a call, and only of a function that exists.
    """

    MARKUP = (TAG,)
    STYLE = CallStyle(before_arguments='", "parameters": ', separator="; ")

    def _read(self) -> Generator[None, None, None]:
        at = yield from self._skip_blanks(0)
        if self._held.startswith("{", at):
            yield from self._read_calls(at, is_marked=False)
        while (yield from self._tell_until(TAG)):
            yield from self._read_calls(self._held.index(TAG) + len(TAG), is_marked=True)

    def _read_calls(self, at: int, *, is_marked: bool) -> Generator[None, None, None]:
        while (yield from self._read_call(at, is_marked=is_marked)):
            yield from self._drop_blanks()
            at = 0
            if self._held.startswith(";"):
                at = yield from self._skip_blanks(1)
            if not self._held.startswith("{", at):
                return
