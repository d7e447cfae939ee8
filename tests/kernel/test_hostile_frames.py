"""What if real calls come garbled, or hold values that nobody expects? Nothing breaks, and nothing leaks."""

from __future__ import annotations

import struct
from typing import Any, get_args

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from syscalls.codec import Call, ErrorReply, Reply, Request, encode_frame
from syscalls.errno import Errno
from syscalls.process import Spawn
from syscalls.sampling import Sampling
from syscalls.system import Shutdown
from tests.kernel.harness import running_kernel, wait_until
from tests.kernel.test_hostile import GREETING, converse

NUM_FIELDS = {  # ranges in which calls often succeed, with some values beyond each end
    "pid": st.integers(0, 8),
    "max_tokens": st.none() | st.integers(-1, 30),
    "num_samples": st.integers(-1, 4),
    "count": st.integers(-1, 4),
    "offset": st.integers(-1, 20),
    "nice": st.integers(-21, 20),
    "min_tokens": st.integers(-1, 10),
}
TOKENS = st.lists(st.integers(-1, 520), max_size=40).map(tuple)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **NUM_FIELDS,
    "prompt": TOKENS,
    "tokens": TOKENS,
    "stop_token_ids": TOKENS,
    "name": st.sampled_from(["image", "", "../up", "a" * 300]),
    "label": st.text(max_size=8),
}


def structs_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Structs of a kind: each optional field is given or left out."""
    optional, required = {}, {}
    for field in msgspec.structs.fields(kind):
        values = FIELDS.get(field.name, st.from_type(field.type))
        (required if field.required else optional)[field.name] = values
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: kind(**fields))


def can_be_sent(body: Any) -> bool:
    """An honest client could not even write some numbers."""
    try:
        encode_frame(Call(1, body))
    except OverflowError:
        return False
    return True


FIELDS["sampling"] = st.just(Sampling()) | structs_of(Sampling)

# `Shutdown` would do what it says; tests/kernel/test_tenants.py says who may.
REQUESTS = st.one_of([structs_of(kind) for kind in get_args(Request) if kind is not Shutdown]).filter(
    can_be_sent
)


@st.composite
def garble(draw: st.DrawFn, frame: bytes) -> bytes:
    """Change a bit, cut the payload or the length, repeat the frame, or leave it whole."""
    match draw(st.sampled_from(["whole"] * 6 + ["flip", "cut", "grow", "length", "twice"])):
        case "flip":
            place = draw(st.integers(4, len(frame) - 1))
            return frame[:place] + bytes([frame[place] ^ (1 << draw(st.integers(0, 7)))]) + frame[place + 1 :]
        case "cut":
            payload = frame[4 : draw(st.integers(4, len(frame)))]
            return struct.pack("<I", len(payload)) + payload
        case "grow":
            payload = frame[4:] + draw(st.binary(min_size=1, max_size=8))
            return struct.pack("<I", len(payload)) + payload
        case "length":
            return struct.pack("<I", draw(st.integers(0, 2**32 - 1))) + frame[4:]
        case "twice":
            return frame * 2
        case _:
            return frame


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[bytes, bool]]:
    """Frames of calls with ids 1, 2, …; each with whether it is still what it was."""
    bodies = draw(
        st.lists(st.sampled_from([Spawn((1, 2, 3), max_tokens=20)]) | REQUESTS, min_size=1, max_size=8)
    )
    whole = [encode_frame(Call(number, body)) for number, body in enumerate(bodies, 1)]
    sent = [draw(garble(frame)) for frame in whole]
    return [(frame, frame == given) for frame, given in zip(sent, whole, strict=True)]


@settings(max_examples=80)
@given(frames=conversations())
def test_garbled_calls(tmp_path_factory: pytest.TempPathFactory, frames: list[tuple[bytes, bool]]) -> None:
    """The kernel has no bug, answers no call that was not made, and keeps detached processes only."""

    async def main() -> None:
        async with running_kernel(tmp_path_factory.mktemp("k")) as kernel:
            received = await converse(kernel, GREETING + b"".join(frame for frame, _ in frames))
            replies = [message for message in received if isinstance(message, Reply)]
            for reply in replies:
                errno = reply.body.errno if isinstance(reply.body, ErrorReply) else None
                assert errno is not Errno.EFAULT, reply
                assert reply.id == 0 or errno is not Errno.EPROTO, reply
                if all(is_whole for _, is_whole in frames):
                    assert 1 <= reply.id <= len(frames)
            await kernel.client.ping()
            await wait_until(lambda: kernel.system.num_sessions == 1)
            for process in await kernel.client.ps(everyone=True):
                assert (
                    kernel.system.table.get(process.pid).session is None
                )  # detached: it stays, and is ended
                await kernel.client.kill(process.pid)
                await kernel.client.wait(process.pid)

    trio.run(main, clock=MockClock(autojump_threshold=0))
