"""Tables: what each column needs, and what a terminal has room for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs
from rich.console import Console, ConsoleOptions
from rich.text import Text

from shell.llmsh.text import make_safe

GAP = 2  # blanks between columns
SHORT = 12  # a flexible column is cut to this before others are left out
STATE_STYLES = {"RUNNING": "green", "STOPPED": "yellow", "ZOMBIE": "dim", "ready": "green", "failed": "red"}


@attrs.frozen
class Column:
    """One column of a table.

    Attributes:
        title: in the header.
        is_number: its cells are aligned to the right.
        is_flexible: its cells may be cut where the terminal is narrow.
        is_minor: left out where the terminal is narrow.
    """

    title: str
    is_number: bool = False
    is_flexible: bool = False
    is_minor: bool = False


@attrs.frozen
class Listing:
    """Rows under a header, without lines; cells stand on one line and are whole, but for flexible ones."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Draw it for rich, as wide as the console at most."""
        needed = [
            max(len(column.title), *(row[i].cell_len for row in self.rows), 0)
            for i, column in enumerate(self.columns)
        ]
        widths = fit(self.columns, needed, options.max_width)
        header = [Text(column.title) for column in self.columns]
        yield self._draw_row(header, widths, "bold")
        for row in self.rows:
            yield self._draw_row(row, widths)

    def _draw_row(self, row: Sequence[Text], widths: Sequence[int | None], style: str = "") -> Text:
        line = Text(style=style, no_wrap=True, overflow="crop", end="\n")
        for column, cell, width in zip(self.columns, row, widths, strict=True):
            if width is None:
                continue
            shown = cell.copy()
            shown.truncate(width, overflow="ellipsis")
            blanks = " " * (width - shown.cell_len)
            line.append(" " * GAP if line else "")
            line.append_text(
                Text.assemble(blanks, shown) if column.is_number else Text.assemble(shown, blanks)
            )
        line.rstrip()
        return line


def make_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Listing:
    """Lay out rows; what is None or empty is shown as a dash, what others wrote cannot drive the terminal."""
    return Listing(columns, [[_make_cell(value) for value in row] for row in rows])


def _make_cell(value: object) -> Text:
    text = "-" if value is None or value == "" else make_safe(str(value)).replace("\n", " ")
    return Text(text, style=STATE_STYLES.get(text.partition("(")[0].strip(), ""))


def fit(columns: Sequence[Column], needed: Sequence[int], room: int) -> list[int | None]:
    """Say how wide each column is drawn; None leaves it out.

    Flexible columns are cut first; then minor ones are left out, from the right; then the flexible ones are
    cut down to their titles; then others are left out, from the right. The first column always stays.
    """
    widths: list[int | None] = list(needed)
    _cut(columns, widths, room, SHORT)
    for i in reversed(range(1, len(columns))):
        if columns[i].is_minor and _total(widths) > room:
            widths[i] = None
    _restore(columns, needed, widths)
    _cut(columns, widths, room, 0)
    for i in reversed(range(1, len(columns))):
        if _total(widths) > room:
            widths[i] = None
    return widths


def _cut(columns: Sequence[Column], widths: list[int | None], room: int, least: int) -> None:
    """Take from flexible columns what is too much, the widest first, and leave each `least` or its title."""
    while (excess := _total(widths) - room) > 0:
        spare = {
            i: width - max(len(column.title), least)
            for i, (column, width) in enumerate(zip(columns, widths, strict=True))
            if column.is_flexible and width is not None
        }
        widest = max(spare, key=lambda i: (spare[i], i), default=None)
        if widest is None or spare[widest] <= 0:
            return
        width = widths[widest]
        assert width is not None
        widths[widest] = width - min(excess, spare[widest])


def _restore(columns: Sequence[Column], needed: Sequence[int], widths: list[int | None]) -> None:
    """Let flexible columns be as wide as they need to be again."""
    for i, column in enumerate(columns):
        if column.is_flexible and widths[i] is not None:
            widths[i] = needed[i]


def _total(widths: Sequence[int | None]) -> int:
    shown = [width for width in widths if width is not None]
    return sum(shown) + GAP * (len(shown) - 1)
