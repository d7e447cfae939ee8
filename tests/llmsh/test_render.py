"""What reaches the terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shell.llmsh.listing import Column, fit, make_table
from shell.llmsh.pipe import TextPipe
from shell.llmsh.render import Screen, format_bytes, format_seconds
from shell.llmsh.text import make_safe


class TerminalText(io.StringIO):
    """A string that claims to be a terminal."""

    def isatty(self) -> bool:
        """See TextIO."""
        return True


@given(st.text())
def test_safe_text_cannot_drive_a_terminal(text: str) -> None:
    """No control character but newline and tab gets through, and ordinary text is left alone."""
    safe = make_safe(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in safe)
    if text.isprintable():
        assert safe == text


def test_model_text_is_made_safe_for_terminals_only() -> None:
    """Escape sequences of a model are shown to a person, and passed on unchanged to a file."""
    hostile = "a\x1b[2Jb\x07"
    terminal, file = TerminalText(), io.StringIO()
    Screen(terminal).write(hostile)
    Screen(file).write(hostile)
    assert terminal.getvalue() == "a^[[2Jb^G"
    assert file.getvalue() == hostile


def test_labels_cannot_drive_a_terminal() -> None:
    """Cells come from other people's processes: control characters are shown, lines joined."""
    terminal = TerminalText()
    Screen(terminal).show(make_table((Column("LABEL"),), [("x\x1b]0;title\x07\ny",)]))
    assert "^[]0;title^G y" in terminal.getvalue()


@given(st.lists(st.tuples(st.text("abc xyz", max_size=300), st.integers(0, 10**12)), max_size=5))
def test_tables_in_a_pipe_are_complete_and_plain(rows: list[tuple[str, int]]) -> None:
    """Nothing is cut, coloured or padded at the end, however wide a row gets."""
    out = io.StringIO()
    Screen(out).show(
        make_table((Column("NUMBER", True), Column("NAME", is_flexible=True)), [(n, t) for t, n in rows])
    )
    header, *lines = out.getvalue().splitlines()
    assert header.split() == ["NUMBER", "NAME"]
    assert "\x1b" not in out.getvalue()
    for line, (text, number) in zip(lines, rows, strict=True):
        assert line == line.rstrip()
        assert line.split(maxsplit=1)[0] == str(number)
        assert line.endswith(text.rstrip() or ("-" if not text else ""))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes(size: int, text: str) -> None:
    """Sizes are written in binary units."""
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0804, "80 ms"), (3.21, "3.2 s"), (245.0, "4:05"), (7380.0, "2:03:00")],
)
def test_durations(seconds: float | None, text: str) -> None:
    """Durations are written as people read them."""
    assert format_seconds(seconds) == text


columns = st.builds(
    Column,
    st.text("ABC", min_size=1, max_size=8),
    st.booleans(),
    is_flexible=st.booleans(),
    is_minor=st.booleans(),
)


@given(st.lists(columns, min_size=1, max_size=8), st.data(), st.integers(1, 120))
def test_what_a_terminal_has_room_for(columns: list[Column], data: st.DataObject, room: int) -> None:
    """Columns are whole or left out, but for flexible ones; the first stays; nothing is lost without need."""
    needed = [len(column.title) + data.draw(st.integers(0, 30)) for column in columns]
    widths = fit(columns, needed, room)
    shown = [width for width in widths if width is not None]
    total = sum(shown) + 2 * (len(shown) - 1)
    assert widths[0] is not None
    assert total <= room or len(shown) == 1
    for column, width, need in zip(columns, widths, needed, strict=True):
        if width is not None:
            assert len(column.title) <= width <= need
            assert width == need or column.is_flexible
    least = [len(c.title) if c.is_flexible else n for c, n in zip(columns, needed, strict=True)]
    if sum(needed) + 2 * (len(needed) - 1) <= room:
        assert widths == needed
    essential = [n for i, n in enumerate(least) if i == 0 or not columns[i].is_minor]
    if sum(essential) + 2 * (len(essential) - 1) <= room:
        assert all(w is not None for w, c in zip(widths, columns, strict=True) if not c.is_minor)


def test_a_narrow_terminal_shows_a_whole_state() -> None:
    """The label is cut first, then minor columns go; a wide character counts as two."""
    out = io.StringIO()
    table = make_table(
        (
            Column("PID", True),
            Column("STATE"),
            Column("DEVICE", is_minor=True),
            Column("LABEL", is_flexible=True),
        ),
        [(7, "ZOMBIE (stop)", "cpu:0", "\u72d0" * 20), (12, "RUNNING", "cpu:0", "b")],
    )
    Console(file=out, width=30).print(table)
    assert out.getvalue().splitlines() == [
        "PID  STATE          LABEL",
        "  7  ZOMBIE (stop)  \u72d0\u72d0\u72d0\u72d0 \u2026",
        " 12  RUNNING        b",
    ]


def test_a_table_for_a_reader_that_has_left() -> None:
    """It is a broken pipe, which a pipe of commands expects; the program does not end."""
    pipe = TextPipe()
    pipe.leave()
    with pytest.raises(BrokenPipeError):
        Screen(pipe).show(make_table([Column("A")], [("1",)]))


def test_an_error_about_a_paste_is_not_a_paste() -> None:
    """Of a very long line the beginning, the end, and how much is between."""
    written = io.StringIO()
    Screen(io.StringIO(), written).error(
        f"llmsh: unknown command '{'a' * 1_000_000}'; help lists the commands"
    )
    assert written.getvalue().startswith("llmsh: unknown command 'aaa")
    assert " characters … " in written.getvalue()
    assert written.getvalue().endswith("'; help lists the commands\n")
    assert len(written.getvalue()) < 2100
