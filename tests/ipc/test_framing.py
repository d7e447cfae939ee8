"""Frames over in-memory streams."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.ipc.framing import FrameError, FrameStream
from syscalls.codec import LENGTH


def frame(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


@settings(max_examples=50)
@given(payloads=st.lists(st.binary(max_size=40), max_size=12), cuts=st.lists(st.integers(1, 30), min_size=1))
def test_payloads_arrive_whole_however_the_stream_is_cut(payloads: list[bytes], cuts: list[int]) -> None:
    """Any cutting of the byte stream gives the same payloads in order, then the end."""

    async def main() -> None:
        left, right = trio.testing.memory_stream_one_way_pair()
        reader = FrameStream(trio.StapledStream(trio.testing.MemorySendStream(), right))
        received: list[bytes] = []

        async def send() -> None:
            data = b"".join(map(frame, payloads))
            number = 0
            while data:
                size = cuts[number % len(cuts)]
                await left.send_all(data[:size])
                data = data[size:]
                number += 1
                await trio.testing.wait_all_tasks_blocked()
            await left.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while len(received) < len(payloads):
                batch = await reader.receive_payloads()
                assert batch
                received += batch
            with pytest.raises(trio.EndOfChannel):
                await reader.receive_payloads()
        assert received == payloads

    trio.run(main)


async def test_what_arrived_together_is_one_batch() -> None:
    """Several frames in one read cost one crossing."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with FrameStream(ours) as reader:
        await theirs.send_all(frame(b"a") + frame(b"") + frame(b"c") + frame(b"half")[:5])
        assert await reader.receive_payloads() == [b"a", b"", b"c"]
        await theirs.send_all(frame(b"half")[5:])
        assert await reader.receive_payloads() == [b"half"]


async def test_an_end_inside_a_frame_is_an_error() -> None:
    """A truncated frame is told apart from a clean end."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(frame(b"whole") + frame(b"cut")[:-1])
    await theirs.aclose()
    reader = FrameStream(ours)
    assert await reader.receive_payloads() == [b"whole"]
    with pytest.raises(FrameError, match="inside a frame, 6 bytes in"):
        await reader.receive_payloads()


async def test_an_oversized_length_is_refused_before_its_payload() -> None:
    """The limit is checked on the length alone."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(LENGTH.pack(101))
    with pytest.raises(FrameError, match="101 bytes; the limit is 100"):
        await FrameStream(ours, limit=100).receive_payloads()


async def test_frames_before_an_oversized_one_come_first() -> None:
    """In one read with it: they are returned, and the next call raises without waiting for more."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(frame(b"a") + frame(b"b") + LENGTH.pack(101))
    reader = FrameStream(ours, limit=100)
    assert await reader.receive_payloads() == [b"a", b"b"]
    for _ in range(2):
        with pytest.raises(FrameError, match="101 bytes; the limit is 100"):
            await reader.receive_payloads()


async def test_sends_of_several_tasks_are_not_interleaved() -> None:
    """Frames larger than the socket's buffer arrive whole although two tasks send at once."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair())
    writer, reader = FrameStream(ours), FrameStream(theirs)
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        for letter in (b"a", b"b"):
            nursery.start_soon(writer.send_all, frame(letter * (1 << 20)))
        while len(received) < 2:
            received += await reader.receive_payloads()
    assert sorted(received) == [b"a" * (1 << 20), b"b" * (1 << 20)]
    await writer.aclose()
    with pytest.raises(trio.EndOfChannel):
        await reader.receive_payloads()
    await reader.aclose()


async def test_a_cancelled_send_breaks_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    """After half a frame nothing may follow; a sender that only waited for its turn does no harm."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair())
    writer = FrameStream(ours)
    async with theirs, writer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.send_all, frame(b"a" * (8 << 20)))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(1) as scope:
                await writer.send_all(frame(b"b"))
            assert scope.cancelled_caught
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError, match="did not finish"):
            await writer.send_all(frame(b"c"))


async def test_a_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The first half of a frame is kept over a cancelled wait for the second."""
    ours, theirs = trio.testing.memory_stream_pair()
    reader = FrameStream(ours)
    data = frame(b"patience")
    await theirs.send_all(data[:6])
    with trio.move_on_after(1) as scope:
        await reader.receive_payloads()
    assert scope.cancelled_caught
    await theirs.send_all(data[6:])
    assert await reader.receive_payloads() == [b"patience"]
