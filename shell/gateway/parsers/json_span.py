"""Where a JSON object ends, told while it comes in, and whether it can still become one."""

from __future__ import annotations

import re

MAX_DEPTH = 64

# Structure, or what JSON has only in strings.
_OUTSIDE = re.compile(r'["{}\[\]]|[^ \t\r\n0-9+\-.eEtrufalsn:,]')
_INSIDE = re.compile(r'["\\\x00-\x1f]')
_CLOSES = {"{": "}", "[": "]"}


class JsonSpan:
    """Follows brackets and strings from an object's `{` to its `}`; the grammar between them is not checked.

    A character that JSON cannot have at its place breaks the span at once, so that a text which only looks
    like a call is let go early.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self.is_broken = False
        self._closers: list[str] = []  # brackets that are open, innermost last
        self._is_in_string = False
        self._is_escaped = False  # the next character belongs to a backslash

    def feed(self, text: str) -> int:
        """Read on. Returns how many characters belong to the object: all of them unless it ends in `text`.

        When the span breaks, the character that broke it is not among them.
        """
        position = 0
        if not self._closers and text:
            if text[0] != "{":
                self.is_broken = True
                return 0
            self._closers.append("}")
            position = 1
        while position < len(text):
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            found = (_INSIDE if self._is_in_string else _OUTSIDE).search(text, position)
            if found is None:
                break
            character, position = found[0], found.end()
            if self._is_in_string:
                self._is_in_string, self._is_escaped = character == "\\", character == "\\"
                self.is_broken = character < " "
            elif character == '"':
                self._is_in_string = True
            elif character in _CLOSES:
                self._closers.append(_CLOSES[character])
                self.is_broken = len(self._closers) > MAX_DEPTH
            else:
                self.is_broken = self._closers.pop() != character
                self.is_complete = not self._closers
            if self.is_broken:
                self.is_complete = False
                return found.start()
            if self.is_complete:
                return position
        return len(text)
