"""What if a client sends nonsense, stops reading, or goes away? Its session ends, and nobody else notices."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from llmos.kernel.session import Session
from llmos.params import HANDSHAKE_SECONDS
from syscalls.client import open_client
from syscalls.codec import (
    ABI_VERSION,
    MAX_FRAME_BYTES,
    Call,
    ErrorReply,
    FrameSplitter,
    Hello,
    Reply,
    Request,
    encode_frame,
    kernel_frame_decoder,
)
from syscalls.errno import Errno
from syscalls.process import Ps, Read, Spawn
from syscalls.system import Events, Ping
from syscalls.tenant import Whoami
from tests.kernel.harness import RunningKernel, running_kernel, wait_until

GREETING = encode_frame(Hello(ABI_VERSION, "hostile"))


async def converse(kernel: RunningKernel, data: bytes) -> list[object]:
    """Send bytes on a connection of one's own, close the sending side, and return all that came back."""
    stream = await trio.open_unix_socket(kernel.socket_path)
    splitter, received = FrameSplitter(), []
    async with stream:
        try:
            await stream.send_all(data)
            await stream.send_eof()
            async for chunk in stream:
                received += [kernel_frame_decoder.decode(payload) for payload in splitter.feed(chunk)]
        except trio.BrokenResourceError:
            pass  # the kernel may hang up first
    return received


def frame(payload: bytes) -> bytes:
    """Put a length in front."""
    return struct.pack("<I", len(payload)) + payload


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", MAX_FRAME_BYTES + 1),
        frame(b"\xc1"),
        frame(msgspec.msgpack.encode({"type": "hello"})),
        encode_frame(Call(1, Ping())),
        encode_frame(Hello(ABI_VERSION + 1)),
        GREETING + GREETING,
        GREETING[:-3],
        struct.pack("<I", 100) + b"only this",
    ],
    ids=[
        "http",
        "oversized",
        "not msgpack",
        "wrong shape",
        "no hello",
        "other abi",
        "two hellos",
        "cut hello",
        "cut frame",
    ],
)
async def test_nonsense_ends_that_session_only(autojump_clock, tmp_path: Path, data: bytes) -> None:
    """Each kind of nonsense is answered by EPROTO on session id 0; others go on; nothing leaks."""
    async with running_kernel(tmp_path) as kernel:
        received = await converse(kernel, data)
        last = received[-1]
        assert isinstance(last, Reply)
        assert last.id == 0
        assert isinstance(last.body, ErrorReply)
        assert last.body.errno is Errno.EPROTO
        await kernel.client.ping()
        await wait_until(lambda: kernel.system.num_sessions == 1)


@pytest.mark.parametrize(
    "garbage", [frame(b"\xff\xff"), struct.pack("<I", MAX_FRAME_BYTES + 1)], ids=["not msgpack", "oversized"]
)
async def test_garbage_after_the_greeting(autojump_clock, tmp_path: Path, garbage: bytes) -> None:
    """A broken frame after good ones: the good ones are answered, the session ends, its processes too."""
    async with running_kernel(tmp_path) as kernel:
        spawn = encode_frame(Call(5, Spawn((1, 2, 3), max_tokens=1000)))
        received = await converse(kernel, GREETING + spawn + garbage)
        assert [type(m.body).__name__ for m in received[1:]] == ["Spawned", "ErrorReply"]
        await wait_until(lambda: len(kernel.system.table) == 0)


async def test_a_bad_call_is_answered(autojump_clock, tmp_path: Path) -> None:
    """A call with a bad body gets EINVAL, one that does not exist ENOSYS; the session goes on."""
    async with running_kernel(tmp_path) as kernel:
        bad = frame(msgspec.msgpack.encode(["call", 7, {"type": "read", "pid": "one"}]))
        unknown = frame(msgspec.msgpack.encode(["call", 8, {"type": "levitate"}]))
        good = encode_frame(Call(9, Ping()))
        received = await converse(kernel, GREETING + bad + unknown + good)
        answers = {m.id: m.body for m in received[1:]}
        assert answers[7].errno is Errno.EINVAL
        assert "pid" in answers[7].message
        assert answers[8].errno is Errno.ENOSYS
        assert "levitate" in answers[8].message
        assert type(answers[9]).__name__ == "Done"


class Steps(trio.abc.Instrument):
    """Counts what was answered within a task's step, where nobody else has a turn."""

    def __init__(self, num_answered: Callable[[], int]) -> None:
        self.num_answered, self.most, self._before = num_answered, 0, 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._before = self.num_answered()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, self.num_answered() - self._before)


@pytest.mark.parametrize(("call", "most"), [(Whoami(), 32), (Ps(everyone=True), 4)])
async def test_thousands_of_calls_at_once(
    autojump_clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Request, most: int
) -> None:
    """Others have their turn between a few of them, the sooner the longer their answers are."""
    answers: list[int] = []
    send = Session.reply
    monkeypatch.setattr(Session, "reply", lambda *args: (answers.append(args[1]), send(*args)))
    async with running_kernel(tmp_path) as kernel:
        pids = (await kernel.client.spawn([1], max_tokens=1, num_samples=20, label="x" * 1000)).pids
        steps = Steps(lambda: len(answers))
        trio.lowlevel.add_instrument(steps)
        received = await converse(
            kernel, GREETING + b"".join(encode_frame(Call(i, call)) for i in range(1, 500))
        )
        trio.lowlevel.remove_instrument(steps)
        for pid in pids:
            await kernel.client.wait(pid)
    assert [message.id for message in received[1:]] == list(range(1, 500))
    assert 0 < steps.most <= most


async def test_hundreds_of_scrapes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread writes metrics at a time, for one session after the other: who asks once is the next."""
    may_end = threading.Event()
    rendered: list[str] = []
    async with running_kernel(tmp_path) as kernel:
        kernel.system.errands.run_blocking = trio.to_thread.run_sync
        monkeypatch.setattr(
            kernel.system.metrics, "render", lambda *_: rendered.append(str(may_end.wait())) or ""
        )

        async def scrape_once() -> None:
            await kernel.client.statistics(exposition=True)
            assert len(rendered) <= 3

        async with open_client(kernel.socket_path) as other, trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(partial(other.statistics, exposition=True))
            try:
                await wait_until(lambda: kernel.system.rendering.borrowed_tokens == 1)
                nursery.start_soon(scrape_once)
                await wait_until(lambda: kernel.system.rendering.statistics().tasks_waiting == 1)
                await kernel.client.ping()
                assert rendered == []
            finally:
                may_end.set()
        assert len(rendered) == 301


async def test_silence_instead_of_hello(autojump_clock, tmp_path: Path) -> None:
    """Who says nothing is shown out after a while."""
    async with running_kernel(tmp_path) as kernel:
        stream = await trio.open_unix_socket(kernel.socket_path)
        async with stream:
            began = trio.current_time()
            data = await stream.receive_some()
            assert b"no Hello" in data
            assert trio.current_time() - began == pytest.approx(HANDSHAKE_SECONDS, abs=0.1)


async def test_parked_calls_leave_nothing(autojump_clock, tmp_path: Path) -> None:
    """A session that goes with reads, waits and followers parked leaves none of them behind."""
    async with running_kernel(tmp_path) as kernel:
        (pid,) = (await kernel.client.spawn((1, 2, 3), max_tokens=50)).pids
        process = kernel.system.table.get(pid)
        async with open_client(kernel.socket_path) as other, trio.open_nursery() as nursery:
            nursery.start_soon(other.call, Read(pid, 0))
            nursery.start_soon(other.wait, pid)
            nursery.start_soon(other.call, Events(since=2**40, follow=True))
            await wait_until(lambda: bool(process.exit_callbacks))
            nursery.cancel_scope.cancel()
        await wait_until(lambda: kernel.system.num_sessions == 1)
        assert process.readers == []
        assert process.exit_callbacks == []
        await kernel.client.wait(pid)


async def test_a_client_that_does_not_read(autojump_clock, tmp_path: Path) -> None:
    """Replies to one who never reads are bounded: its calls are not read any more, others are served."""
    async with running_kernel(tmp_path) as kernel:
        stream = await trio.open_unix_socket(kernel.socket_path)
        async with stream:
            await stream.send_all(GREETING)
            flood = b"".join(encode_frame(Call(i, Ping())) for i in range(1000))
            with trio.move_on_after(5) as scope:
                while True:
                    await stream.send_all(flood)
            assert scope.cancelled_caught
            await kernel.client.ping()


@settings(max_examples=60)
@given(data=st.binary(max_size=400), greet=st.booleans())
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, greet: bool) -> None:
    """Whatever bytes arrive, the kernel lives and the next client is served."""

    async def main() -> None:
        async with running_kernel(tmp_path_factory.mktemp("k")) as kernel:
            await converse(kernel, (GREETING if greet else b"") + data)
            await kernel.client.ping()

    trio.run(main, clock=MockClock(autojump_threshold=0))
