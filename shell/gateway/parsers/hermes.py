"""Calls as Qwen 2.5, Qwen 3 and Hermes write them: a JSON object between `<tool_call>` and `</tool_call>`."""

from __future__ import annotations

from collections.abc import Generator

from shell.gateway.parsers.style import CallStyle
from shell.gateway.parsers.tool_parser import ToolParser

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(ToolParser):
    """`<tool_call>\\n{"name": "f", "arguments": {…}}\\n</tool_call>`, any number, anywhere in the text.

    A closing mark that is missing, as before the next call or at the end, is let pass.
    """

    MARKUP = (OPEN, CLOSE)
    STYLE = CallStyle(before_name=f'{OPEN}\n{{"name": "', after_arguments=f"}}\n{CLOSE}")

    def _read(self) -> Generator[None, None, None]:
        while (yield from self._tell_until(OPEN)):
            if (yield from self._read_call(self._held.index(OPEN) + len(OPEN))):
                at = yield from self._skip_blanks(0)
                if (yield from self._has(CLOSE, at)):
                    self._drop(at + len(CLOSE))
                yield from self._drop_blanks()
