"""What if nobody takes a server's log? Lines are lost, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from syscalls.log_lines import LogStream


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end."""
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):  # closed by the test
            os.close(descriptor)


def test_a_reader_that_does_not_read(pipe: tuple[int, int]) -> None:
    """Nobody waits for it; what it finds in the end is whole lines, and how many are missing."""
    reading, writing = pipe
    stream = LogStream(writing)
    for number in range(1000):
        print(f"{number:03} " + "x" * 200, file=stream, flush=True)
    early = os.read(reading, 1 << 20).decode().splitlines()
    assert 100 < len(early) < 1000
    print("again", file=stream, flush=True)
    print("and again", file=stream, flush=True)
    late = os.read(reading, 1 << 20).decode().splitlines()
    assert late == ["", f"{1000 - len(early)} lines of the log were lost", "again", "and again"]
    assert [int(line[:3]) for line in early] == list(range(len(early)))


def test_a_line_longer_than_a_pipe_has_room_for(pipe: tuple[int, int]) -> None:
    """Its beginning is there; it counts as lost, and those behind it begin a line of their own."""
    reading, writing = pipe
    stream = LogStream(writing)
    print("y" * (1 << 20), file=stream, flush=True)
    assert set(os.read(reading, 1 << 20)) == {ord("y")}
    print("next", file=stream, flush=True)
    assert os.read(reading, 1 << 20) == b"\n1 lines of the log were lost\nnext\n"


def test_a_reader_that_left(pipe: tuple[int, int]) -> None:
    """Nothing is raised."""
    reading, writing = pipe
    os.close(reading)
    print("to nobody", file=LogStream(writing), flush=True)


def test_a_disk_that_is_full() -> None:
    """Nothing is raised."""
    with open("/dev/full", "wb") as full:
        print("to nowhere", file=LogStream(full.fileno()), flush=True)


def test_a_process_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines go nowhere: descriptor 2 may be anybody's."""
    monkeypatch.setattr("sys.stderr", None)
    read, write = os.pipe()
    kept = os.dup(2)
    os.dup2(write, 2)
    try:
        print("to a stranger", file=LogStream(), flush=True)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(write)
    assert os.read(read, 100) == b""
    os.close(read)
