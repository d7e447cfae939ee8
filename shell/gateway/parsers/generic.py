"""Calls as any model can write them when it is told to: plain JSON and nothing before it."""

from __future__ import annotations

from collections.abc import Generator

from shell.gateway.parsers.tool_parser import ToolParser

FENCE = "```"


class JsonParser(ToolParser):
    """`{"name": "f", "arguments": {…}}`, one behind the other or in a list, perhaps in a fence.

    Only a text that begins so, and names a function that exists, is a call.
    """

    def _read(self) -> Generator[None, None, None]:
        at = yield from self._skip_blanks(0)
        is_fenced = yield from self._has(FENCE, at)
        if is_fenced:
            is_named = yield from self._has(FENCE + "json", at)
            at = yield from self._skip_blanks(at + len(FENCE + "json" if is_named else FENCE))
        if self._held.startswith("[", at):
            if (yield from self._read_list(at + 1, is_marked=False)):
                yield from self._drop_blanks()
        elif self._held.startswith("{", at):
            while (yield from self._read_call(at, is_marked=False)):
                yield from self._drop_blanks()
                at = 0
                if not self._held.startswith("{"):
                    break
        if self.num_ended and is_fenced and (yield from self._has(FENCE, 0)):
            self._drop(len(FENCE))
            yield from self._drop_blanks()
        yield from self._tell_rest()
