"""Frames survive the wire, however the wire cuts them."""

from __future__ import annotations

import tracemalloc
import typing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syscalls.codec import (
    DECODE_ERRORS,
    LENGTH,
    MAX_FRAME_BYTES,
    Answer,
    Call,
    ErrorReply,
    FrameSplitter,
    FrameTooLarge,
    Hello,
    Reply,
    Request,
    Welcome,
    client_frame_decoder,
    encode_frame,
    kernel_frame_decoder,
)
from syscalls.process import Spawn
from syscalls.session import REPLY_TYPES, SpawnOptions
from tests.syscalls.strategies import client_frames, kernel_frames


@given(client_frames)
def test_client_frames_survive(frame: Hello | Call) -> None:
    """Whatever a client can say decodes to what it said."""
    (payload,) = FrameSplitter().feed(encode_frame(frame))
    assert client_frame_decoder.decode(payload) == frame


@given(kernel_frames)
def test_kernel_frames_survive(frame: Welcome | Reply) -> None:
    """Whatever the kernel can say decodes to what it said."""
    (payload,) = FrameSplitter().feed(encode_frame(frame))
    assert kernel_frame_decoder.decode(payload) == frame


@given(st.lists(st.binary(max_size=40), max_size=10), st.data())
def test_splitter_ignores_where_the_stream_is_cut(payloads: list[bytes], data: st.DataObject) -> None:
    """Any cut of the byte stream gives the same payloads, and nothing is left over."""
    stream = b"".join(LENGTH.pack(len(payload)) + payload for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    splitter = FrameSplitter()
    found: list[bytes] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += splitter.feed(memoryview(stream)[start:stop])
    assert found == payloads
    assert splitter.num_pending_bytes == 0


@given(st.binary(min_size=1, max_size=40), st.data())
def test_splitter_knows_that_a_frame_is_unfinished(payload: bytes, data: st.DataObject) -> None:
    """A truncated frame is not given out, and shows as pending bytes."""
    frame = LENGTH.pack(len(payload)) + payload
    length = data.draw(st.integers(1, len(frame) - 1))
    splitter = FrameSplitter()
    assert splitter.feed(frame[:length]) == []
    assert splitter.num_pending_bytes == length


def test_oversized_frame_is_refused_before_it_is_allocated() -> None:
    """Four bytes that announce 4 GiB are refused, and cost next to nothing."""
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLarge, match=f"{2**32 - 1} bytes; the limit is {MAX_FRAME_BYTES}"):
            FrameSplitter().feed(LENGTH.pack(2**32 - 1))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_frame_of_exactly_the_limit_passes() -> None:
    """The limit itself is allowed; one byte more is not."""
    splitter = FrameSplitter(limit=8)
    assert splitter.feed(LENGTH.pack(8) + b"12345678") == [b"12345678"]
    with pytest.raises(FrameTooLarge):
        splitter.feed(LENGTH.pack(9))


@given(st.lists(st.integers(0, 12), max_size=12), st.lists(st.integers(1, 40), min_size=1))
def test_what_stands_before_an_oversized_frame_is_whole(sizes: list[int], cuts: list[int]) -> None:
    """However the stream is cut: all frames before the first over the limit, in order, and then the error."""
    limit = 8
    payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
    good = payloads[: next((i for i, size in enumerate(sizes) if size > limit), len(sizes))]
    data = b"".join(LENGTH.pack(len(payload)) + payload for payload in payloads)
    splitter, found, number = FrameSplitter(limit=limit), [], 0
    while data and not splitter.is_blocked:
        size = cuts[number % len(cuts)]
        number += 1
        try:
            found += splitter.feed(data[:size])
        except FrameTooLarge:
            assert splitter.is_blocked
        data = data[size:]
    assert found == good
    assert splitter.is_blocked == (len(good) < len(sizes))
    if splitter.is_blocked:
        for more in (b"", b"more"):
            with pytest.raises(FrameTooLarge, match="the limit is 8"):
                splitter.feed(more)


def test_encoder_refuses_what_the_splitter_would() -> None:
    """A message over the limit cannot be encoded."""
    with pytest.raises(FrameTooLarge):
        encode_frame(Call(1, Spawn((1 << 31,) * (MAX_FRAME_BYTES // 5 + 1))))


@given(st.binary(max_size=64))
@example(b"\x93\xa5hello\x01\xa2\xff\xfe")  # a name that is not UTF-8
@example(b"\x94\xa5hello\x01\xa1x" + b"\x91" * 100_000 + b"\x01")  # a fourth field, deeply nested
def test_garbage_is_a_decode_error(payload: bytes) -> None:
    """Bytes that are no message raise one of the declared errors, or happen to decode; nothing else."""
    for decoder in (client_frame_decoder, kernel_frame_decoder):
        try:
            decoded = decoder.decode(payload)
        except DECODE_ERRORS:
            continue
        assert isinstance(decoded, Hello | Call | Welcome | Reply)


def test_every_call_has_a_reply_type() -> None:
    """The table of replies covers the request union, and every answer but the error is somebody's reply."""
    assert set(REPLY_TYPES) == set(typing.get_args(Request))
    assert set(REPLY_TYPES.values()) | {ErrorReply} == set(typing.get_args(Answer))


def test_spawn_options_are_the_fields_of_spawn() -> None:
    """The keyword arguments of `spawn` have the names and types of the struct's fields."""
    fields = typing.get_type_hints(Spawn)
    del fields["prompt"]
    assert typing.get_type_hints(SpawnOptions) == fields
