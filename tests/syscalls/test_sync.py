"""The blocking client, in a thread, against a fake of the kernel's side of the protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from syscalls import sync_connection
from syscalls.client import Client
from syscalls.codec import (
    ABI_VERSION,
    LENGTH,
    MAX_FRAME_BYTES,
    Answer,
    ErrorReply,
    Reply,
    Request,
    encode_frame,
)
from syscalls.embedding import Embed
from syscalls.errno import Errno, SyscallError
from syscalls.image import Restore
from syscalls.process import ExitStatus, Fork, Kill, Output, Read, Spawn, Spawned, Stop, Wait
from syscalls.sync import ConnectionLost, SyncClient
from syscalls.system import Done, Event, EventList, Events, Ping
from tests.syscalls.fake_kernel import FakeKernel, FakeSession, open_fake_kernel


async def answer_simply(session: FakeSession, body: Request) -> Answer:
    """Read by threes from a story of ten tokens, two events at a time; refuse Stop; else Done."""
    match body:
        case Read(offset=offset):
            stop = min(offset + 3, 10)
            return Output(
                offset, tuple(range(offset, stop)), end=ExitStatus("stop", 2) if stop == 10 else None
            )
        case Events(since=since):
            return EventList(tuple(Event(since + n, 0.0, "info", "mm", "text") for n in (0, 1)))
        case Stop():
            raise SyscallError(Errno.EBUSY, "process 1 has exited")
        case _:
            return Done()


async def run_against(kernel: FakeKernel, path: Path, use: Callable[[Path], None]) -> None:
    """Run blocking code in a thread while the fake kernel serves, until that has read all it was sent."""
    async with open_fake_kernel(kernel, path):
        await trio.to_thread.run_sync(use, path)
        for session in kernel.sessions:
            await session.ended.wait()


async def test_calls_streams_and_errors(tmp_path: Path) -> None:
    """Handshake, plain calls, a stream, followed events and a refused call work one after the other."""

    def use(path: Path) -> None:
        with SyncClient(path, name="plain") as client:
            assert client.welcome.abi == ABI_VERSION
            client.ping()
            stream = client.stream(1)
            outputs = list(stream)
            assert sum((output.tokens for output in outputs), ()) == tuple(range(10))
            assert outputs[-1].end == ExitStatus("stop", 2)
            assert stream.offset == 10
            follower = client.follow_events(3)
            assert [event.sequence for _ in range(2) for event in next(follower)] == [3, 4, 5, 6]
            with pytest.raises(SyscallError, match="has exited") as caught:
                client.stop(1)
            assert caught.value.errno is Errno.EBUSY
            with pytest.raises(SyscallError, match="Spawn was answered by Done"):
                client.spawn([1])
            with pytest.raises(SyscallError, match=str(MAX_FRAME_BYTES)):
                client.call(Spawn((1 << 31,) * (MAX_FRAME_BYTES // 5 + 1)))
            client.kill(1)
        with pytest.raises(ConnectionLost, match="closed"):
            client.ping()

    kernel = FakeKernel(answer_simply)
    await run_against(kernel, tmp_path / "s", use)
    hello = kernel.sessions[0].hello
    assert hello is not None
    assert hello.client == "plain"


async def test_abi_mismatch_names_both_versions(tmp_path: Path) -> None:
    """A kernel of another ABI is refused with EPROTO before any call is made."""

    def use(path: Path) -> None:
        with pytest.raises(SyscallError, match=rf"ABI 77.*ABI {ABI_VERSION}") as caught:
            SyncClient(path)
        assert caught.value.errno is Errno.EPROTO

    await run_against(FakeKernel(answer_simply, abi=77), tmp_path / "s", use)


def test_no_kernel_is_a_named_error(tmp_path: Path) -> None:
    """Without a socket the client names the path that it tried."""
    with pytest.raises(ConnectionLost, match=str(tmp_path / "absent")):
        SyncClient(tmp_path / "absent")


async def close_with_reason(session: FakeSession) -> None:
    """Say why, then close."""
    await session.send(Reply(0, ErrorReply(Errno.ESHUTDOWN, "the kernel stops")))
    await session.stream.aclose()


async def close_inside_a_frame(session: FakeSession) -> None:
    """Close in the middle of a reply."""
    await session.stream.send_all(encode_frame(Reply(1, Done()))[:-2])
    await session.stream.aclose()


async def announce_a_huge_frame(session: FakeSession) -> None:
    """Announce a frame over the limit."""
    await session.stream.send_all(LENGTH.pack(MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize(
    ("breaking", "reason"),
    [
        (close_with_reason, "ESHUTDOWN: the kernel stops"),
        (close_inside_a_frame, "inside a frame"),
        (announce_a_huge_frame, f"the limit is {MAX_FRAME_BYTES}"),
    ],
)
async def test_lost_connection_is_named_now_and_later(
    tmp_path: Path, breaking: Callable[[FakeSession], Awaitable[None]], reason: str
) -> None:
    """The call that meets the end, and every later one, raise ConnectionLost with the reason."""

    async def break_at_once(session: FakeSession, body: Request) -> Answer:
        await breaking(session)
        await trio.sleep_forever()
        raise AssertionError

    def use(path: Path) -> None:
        with SyncClient(path) as client:
            for _ in range(2):
                with pytest.raises(ConnectionLost, match=reason):
                    client.ping()

    await run_against(FakeKernel(break_at_once), tmp_path / "s", use)


async def test_reply_of_an_interrupted_call_is_dropped(tmp_path: Path) -> None:
    """A reply whose caller gave up does not answer the next call."""

    async def hold_stop(session: FakeSession, body: Request) -> Answer:
        if isinstance(body, Stop):
            await release.wait()
            raise SyscallError(Errno.EBUSY, "late")
        release.set()
        return Done()

    release = trio.Event()

    def use(path: Path) -> None:
        with SyncClient(path) as client:
            _, frame = client._connection._session.encode_call(Stop(1))
            client._connection._send(frame)  # as far as an interrupted call gets
            for _ in range(3):
                client.ping()

    await run_against(FakeKernel(hold_stop), tmp_path / "s", use)


def interrupt(client: SyncClient, *, is_answered: bool = False) -> None:
    """Have Ctrl-C come at the next wait of a client, before what it waits for or just behind it."""
    receive = client._connection._receive

    def be_interrupted() -> None:
        client._connection._receive = receive  # type: ignore[method-assign]
        if is_answered:
            receive()
        raise KeyboardInterrupt

    client._connection._receive = be_interrupted  # type: ignore[method-assign]


@pytest.mark.parametrize("is_answered", [False, True])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("body", [Spawn((1,), num_samples=2), Fork(9, 2), Restore("a"), Embed(((1,), (2,)))])
async def test_what_an_interrupted_call_creates_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: Request, goes_on: bool, is_answered: bool
) -> None:
    """What if Ctrl-C comes while a spawn waits for its answer? With the next call, or at the end, all end."""

    monkeypatch.setattr(sync_connection, "ORPHAN_SECONDS", 60.0)  # a busy machine may answer late

    async def create(session: FakeSession, body: Request) -> Answer:
        return Spawned((3, 4), (0, 0)) if isinstance(body, Spawn | Fork | Restore | Embed) else Done()

    def use(path: Path) -> None:
        with SyncClient(path) as client:
            interrupt(client, is_answered=is_answered)
            with pytest.raises(KeyboardInterrupt):
                client.call(body)
            for _ in range(2 * goes_on):
                client.ping()

    kernel = FakeKernel(create)
    await run_against(kernel, tmp_path / "s", use)
    calls = [call.body for call in kernel.sessions[0].calls if not isinstance(call.body, Ping)]
    assert calls == [body, Kill(3), Wait(3), Kill(4), Wait(4)]


async def test_an_interrupted_call_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    """What if the spawn that was interrupted is refused? Nothing is killed, and later calls are as ever."""

    def use(path: Path) -> None:
        with SyncClient(path) as client:
            interrupt(client)
            with pytest.raises(KeyboardInterrupt):
                client.spawn([1])
            client.ping()

    async def refuse(session: FakeSession, body: Request) -> Answer:
        if isinstance(body, Spawn):
            raise SyscallError(Errno.EAGAIN, "the process table is full")
        return Done()

    kernel = FakeKernel(refuse)
    await run_against(kernel, tmp_path / "s", use)
    assert [type(call.body) for call in kernel.sessions[0].calls] == [Spawn, Ping]


async def test_the_end_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if the kernel never answers the call that was interrupted? The client is closed all the same."""

    async def say_nothing(session: FakeSession, body: Request) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    def use(path: Path) -> None:
        with SyncClient(path) as client:
            interrupt(client)
            with pytest.raises(KeyboardInterrupt):
                client.spawn([1])
        client.close()
        with pytest.raises(ConnectionLost, match="timed out"):
            client.ping()

    monkeypatch.setattr(sync_connection, "ORPHAN_SECONDS", 0.01)
    await run_against(FakeKernel(say_nothing), tmp_path / "s", use)


async def test_what_a_failed_embed_leaves_is_killed(tmp_path: Path) -> None:
    """The first input's vector is there and the second read is refused: the others are killed and reaped."""

    async def refuse_second(session: FakeSession, body: Request) -> Answer:
        match body:
            case Embed():
                return Spawned((1, 2, 3), (0, 0, 0))
            case Read(1):
                return Output(0, (), end=ExitStatus("stop", 0), vector=b"\0\0\0\0")
            case Read():
                raise SyscallError(Errno.EIO, "the device failed")
            case _:
                return Done()

    def use(path: Path) -> None:
        with SyncClient(path) as client:
            with pytest.raises(SyscallError, match="the device failed"):
                client.embed([(1,), (2,), (3,)])
            client.ping()

    kernel = FakeKernel(refuse_second)
    await run_against(kernel, tmp_path / "s", use)
    ended = [call.body for call in kernel.sessions[0].calls if isinstance(call.body, Kill | Wait)]
    assert ended == [Kill(2), Wait(2), Kill(3), Wait(3)]


def test_both_clients_offer_the_same_calls() -> None:
    """Whatever one client can do, the other can, but for a feed: it is for whoever does other things too."""
    public = [{name for name in vars(kind) if not name.startswith("_")} for kind in (Client, SyncClient)]
    assert public[0] - {"num_calls_in_flight", "open_feed"} == public[1] - {"close"}
