"""How a format's calls are written: for grammars, and for models whose template knows no tools."""

from __future__ import annotations

from collections.abc import Iterable

import attrs


@attrs.frozen(kw_only=True)
class CallStyle:
    """The text around names and arguments. Calls written so are read back by the format's parser."""

    opening: str = ""  # once, before the first call
    before_name: str = '{"name": "'
    before_arguments: str = '", "arguments": '
    after_arguments: str = "}"
    separator: str = "\n"
    closing: str = ""  # once, behind the last call

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """Write calls, each a name and the JSON text of its arguments."""
        written = [
            f"{self.before_name}{name}{self.before_arguments}{arguments}{self.after_arguments}"
            for name, arguments in calls
        ]
        return f"{self.opening}{self.separator.join(written)}{self.closing}"
