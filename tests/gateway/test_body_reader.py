"""The process that decodes large bodies: real ones, which die, hang and grow."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from shell.gateway import body_reader
from shell.gateway.body_file import BodyFile
from shell.gateway.body_parts import BodyLimits
from shell.gateway.body_process import Refused
from shell.gateway.body_reader import BodyReader
from shell.gateway.errors import ApiError

MAX_BYTES = 64 << 20
BODY = {"input": ["grüße " * 30_000, "x" * 200_000], "ids": list(range(100_000)), "n": 2**80, "f": 1.5}
RAW = json.dumps(BODY).encode()


def is_alive(pid: int) -> bool:
    """Is there such a process? One that only waits to be reaped is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@asynccontextmanager
async def open_reader(reader: BodyReader) -> AsyncIterator[BodyReader]:
    """Run a reader for the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(reader.run)
        yield reader
        nursery.cancel_scope.cancel()


def write_body(raw: bytes) -> BodyFile:
    """A body that has arrived."""
    file = BodyFile()
    file.write(raw)
    return file


async def read(reader: BodyReader, raw: bytes) -> object:
    """Have a body read."""
    file = write_body(raw)
    try:
        return await reader.read(file, BodyLimits())
    finally:
        file.close()


async def test_one_process_reads_one_body_after_the_other() -> None:
    """It starts with the first, and ends with the reader."""
    async with open_reader(BodyReader(MAX_BYTES)) as reader:
        assert reader.process_id is None
        assert await read(reader, RAW) == BODY
        first = reader.process_id
        assert first is not None
        for _ in range(3):
            assert await read(reader, RAW) == BODY
            refused = await read(reader, b"{")
            assert isinstance(refused, Refused)
            assert refused.code == "invalid_json"
        assert reader.process_id == first
    assert not is_alive(first)


async def test_many_ask_at_once() -> None:
    """Each gets its own body."""
    found = {}
    async with open_reader(BodyReader(MAX_BYTES)) as reader:

        async def ask(number: int) -> None:
            found[number] = await read(reader, msgspec.json.encode({"number": number, "text": "x" * 100_000}))

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(ask, number)
    assert {number: value["number"] for number, value in found.items()} == {n: n for n in range(12)}


async def test_a_process_that_dies_is_replaced() -> None:
    """Between bodies, and while it has one: that goes to the next process."""
    async with open_reader(BodyReader(MAX_BYTES)) as reader:
        await read(reader, RAW)
        assert reader.process_id is not None
        os.kill(reader.process_id, signal.SIGKILL)
        assert await read(reader, RAW) == BODY

        second = reader.process_id
        os.kill(second, signal.SIGSTOP)
        found = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def ask() -> None:
                found.append(await read(reader, RAW))

            await trio.testing.wait_all_tasks_blocked()
            os.kill(second, signal.SIGKILL)
        assert found == [BODY]
        assert reader.process_id != second


async def test_nobody_gets_the_answer_of_a_body_that_was_given_up() -> None:
    """A client that goes away while its body is decoded takes that process with it."""
    async with open_reader(BodyReader(MAX_BYTES)) as reader:
        await read(reader, RAW)
        first = reader.process_id
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, reader, RAW)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert not is_alive(first)
        assert await read(reader, b'{"other": 1}') == {"other": 1}


async def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its body gets a 503, and is not tried again; the next one has a process."""
    async with open_reader(BodyReader(MAX_BYTES)) as reader:
        await read(reader, RAW)
        assert reader.process_id is not None
        os.kill(reader.process_id, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(body_reader, "MAX_SECONDS", 0.05)
            with pytest.raises(ApiError) as caught:
                await read(reader, RAW)
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        assert caught.value.headers["retry-after"]
        assert await read(reader, RAW) == BODY


async def test_a_process_that_has_grown_is_not_kept() -> None:
    """With no memory to keep, each body has a process of its own."""
    async with open_reader(BodyReader(MAX_BYTES, kept_bytes=0)) as reader:
        for _ in range(2):
            assert await read(reader, RAW) == BODY
            assert reader.process_id is None
            assert isinstance(await read(reader, b"{"), Refused)
            assert reader.process_id is None


async def test_what_takes_too_much_memory_is_refused() -> None:
    """Seven million empty lists are 20 MiB of JSON, and more than the process may have."""
    async with open_reader(BodyReader(0)) as reader:
        refused = await read(reader, b'{"a":[' + b"[]," * 7_000_000 + b"1]}")
        assert isinstance(refused, Refused)
        assert (refused.code, refused.message) == (
            "invalid_value",
            "The request's body holds too many values to be read.",
        )
        assert await read(reader, RAW) == BODY
