"""Text from one command to the next: nothing is lost, and little is held."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shell.llmsh.errors import CommandError
from shell.llmsh.pipe import FileInput, LineReader, TextPipe, read_all

chunk_lists = st.lists(st.text("ab\né", max_size=6), max_size=12)


@given(chunk_lists, st.lists(st.sampled_from([0, 1, 5]), min_size=1, max_size=6), st.integers(1, 8))
def test_a_pipe_is_a_string(chunks: list[str], pauses: list[int], limit: int) -> None:
    """Whatever the pace of both ends, the reader gets what was written, and no more than that is held."""
    received: list[str] = []

    async def main() -> None:
        pipe = TextPipe(limit)

        async def write() -> None:
            for number, chunk in enumerate(chunks):
                pipe.write(chunk)
                assert pipe.num_unread < limit + max(map(len, chunks))
                await pipe.drain()
                await trio.sleep(pauses[number % len(pauses)])
            pipe.end()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while text := await pipe.receive():
                received.append(text)
                await trio.sleep(pauses[len(received) % len(pauses)])

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert "".join(received) == "".join(chunks)


@given(chunk_lists)
def test_lines_are_what_splitlines_says(chunks: list[str]) -> None:
    """However the text is cut, its lines come one by one, each with its newline."""

    async def main() -> list[str]:
        pipe = TextPipe()
        for chunk in chunks:
            pipe.write(chunk)
        pipe.end()
        lines = LineReader(pipe)
        return [line async for line in _until_empty(lines)]

    assert trio.run(main) == "".join(chunks).splitlines(keepends=True)


async def _until_empty(lines: LineReader):  # type: ignore[no-untyped-def]
    while line := await lines.read_line():
        yield line


@given(st.binary(max_size=40))
def test_files_are_read_as_utf8(data: bytes) -> None:
    """A file's bytes are decoded as Python decodes them with replacements."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    try:
        assert trio.run(read_all, FileInput(reading)) == data.decode(errors="replace")
    finally:
        os.close(reading)


async def test_a_reader_that_leaves_ends_the_writer(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever waits for room, and whoever writes later, is told that nobody reads."""
    pipe = TextPipe(limit=2)
    pipe.write("full")
    async with trio.open_nursery() as nursery:

        async def wait_for_room() -> None:
            with pytest.raises(BrokenPipeError):
                await pipe.drain()

        nursery.start_soon(wait_for_room)
        await trio.testing.wait_all_tasks_blocked()
        pipe.leave()
    with pytest.raises(BrokenPipeError):
        pipe.write("more")
    assert pipe.num_unread == 0


async def test_an_input_has_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An input that a command would have to keep whole is refused with the limit."""
    monkeypatch.setattr("shell.llmsh.pipe.MAX_INPUT_CHARACTERS", 3)
    for read in (read_all, lambda source: LineReader(source).read_line()):
        pipe = TextPipe()
        pipe.write("four")
        pipe.end()
        with pytest.raises(CommandError, match="more than 3 characters"):
            await read(pipe)
