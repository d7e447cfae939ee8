"""The Trio client against a fake of the kernel's side of the protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from syscalls.client import ConnectionLost, open_client
from syscalls.codec import (
    ABI_VERSION,
    LENGTH,
    MAX_FRAME_BYTES,
    Answer,
    Call,
    ErrorReply,
    Reply,
    Request,
    Welcome,
    encode_frame,
)
from syscalls.connection import BURIAL_SECONDS
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus, Kill, Nice, Output, Read, Spawn, Spawned, Stop, Wait
from syscalls.session import ClientSession
from syscalls.system import Done, Event, EventList, Events, Ping
from tests.syscalls.fake_kernel import FakeKernel, FakeSession, open_fake_kernel


async def say_done(session: FakeSession, body: Request) -> Answer:
    """Answer every call with Done."""
    return Done()


async def test_handshake_tells_both_sides_who_is_there(tmp_path: Path) -> None:
    """The kernel sees the client's name and ABI; the client sees the welcome."""
    async with open_fake_kernel(FakeKernel(say_done), tmp_path / "s") as kernel:
        async with open_client(tmp_path / "s", name="tester") as client:
            assert client.welcome.tenant == "tester"
            await client.ping()
        hello = kernel.sessions[0].hello
        assert hello is not None
        assert (hello.abi, hello.client) == (ABI_VERSION, "tester")


async def test_abi_mismatch_names_both_versions(tmp_path: Path) -> None:
    """A kernel of another ABI is refused with EPROTO before any call is made."""
    async with open_fake_kernel(FakeKernel(say_done, abi=77), tmp_path / "s"):
        with pytest.raises(SyscallError, match=rf"ABI 77.*ABI {ABI_VERSION}") as caught:
            async with open_client(tmp_path / "s"):
                pass
        assert caught.value.errno is Errno.EPROTO


async def test_refused_handshake_raises_the_kernels_error(tmp_path: Path) -> None:
    """An error reply in place of the welcome comes out of open_client as it was sent."""

    async def refuse(session: FakeSession) -> None:
        await session.send(Reply(0, ErrorReply(Errno.EAGAIN, "64 sessions are open")))

    async with open_fake_kernel(FakeKernel(say_done, greeting=refuse), tmp_path / "s"):
        with pytest.raises(SyscallError, match="64 sessions are open") as caught:
            async with open_client(tmp_path / "s"):
                pass
        assert caught.value.errno is Errno.EAGAIN


async def test_no_kernel_is_a_named_error(tmp_path: Path) -> None:
    """Without a socket the client names the path that it tried."""
    with pytest.raises(ConnectionLost, match=str(tmp_path / "absent")):
        async with open_client(tmp_path / "absent"):
            pass


async def test_out_of_order_replies_reach_their_callers(tmp_path: Path) -> None:
    """Calls overlap, and each caller gets its own answer although the last call is answered first."""
    arrived: dict[int, trio.Event] = {pid: trio.Event() for pid in range(5)}

    async def answer_backwards(session: FakeSession, body: Request) -> Answer:
        assert isinstance(body, Read)
        arrived[body.pid].set()
        if body.pid + 1 in arrived:
            await arrived[body.pid + 1].wait()
            while len(finished) < len(arrived) - 1 - body.pid:
                await trio.testing.wait_all_tasks_blocked()
        return Output(0, (body.pid,))

    finished: list[int] = []

    async with open_fake_kernel(FakeKernel(answer_backwards), tmp_path / "s"):
        async with open_client(tmp_path / "s") as client:

            async def read(pid: int) -> None:
                assert (await client.read(pid)).tokens == (pid,)
                finished.append(pid)

            async with trio.open_nursery() as nursery:
                for pid in arrived:
                    nursery.start_soon(read, pid)
            assert client.num_calls_in_flight == 0
    assert finished == [4, 3, 2, 1, 0]


async def test_calls_of_one_tick_share_a_send(tmp_path: Path) -> None:
    """A hundred concurrent pings arrive as one chunk of bytes."""
    async with open_fake_kernel(FakeKernel(say_done), tmp_path / "s") as kernel:
        async with open_client(tmp_path / "s") as client:
            await client.ping()  # the writer is parked from here on
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(client.ping)
        session = kernel.sessions[0]
        assert len(session.calls) == 101
        assert len(session.received_sizes) == 2


async def test_error_reply_is_raised_and_the_session_goes_on(tmp_path: Path) -> None:
    """A refused call carries errno and message out of the block; the next call works."""

    async def refuse_nice(session: FakeSession, body: Request) -> Answer:
        if isinstance(body, Nice):
            raise SyscallError(Errno.EINVAL, f"nice is {body.nice}; the limit is -20 to 19")
        return Done()

    async with open_fake_kernel(FakeKernel(refuse_nice), tmp_path / "s"):
        with pytest.raises(SyscallError, match="nice is 99") as caught:  # noqa: PT012
            async with open_client(tmp_path / "s") as client:
                await client.ping()
                await client.nice(1, 99)
        assert caught.value.errno is Errno.EINVAL
        async with open_client(tmp_path / "s") as client:
            with pytest.raises(SyscallError):
                await client.nice(1, 99)
            await client.ping()


async def test_answer_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    """A kernel that answers a spawn with Done is caught by name."""
    async with open_fake_kernel(FakeKernel(say_done), tmp_path / "s"):
        async with open_client(tmp_path / "s") as client:
            with pytest.raises(SyscallError, match="Spawn was answered by Done") as caught:
                await client.spawn([1])
            assert caught.value.errno is Errno.EPROTO


async def test_cancelled_calls_reply_is_dropped(tmp_path: Path) -> None:
    """A reply that comes after its caller was cancelled disturbs nobody."""
    release = trio.Event()

    async def hold_reads(session: FakeSession, body: Request) -> Answer:
        if isinstance(body, Read):
            await release.wait()
            return Output(0, (7,))
        return Done()

    async with open_fake_kernel(FakeKernel(hold_reads), tmp_path / "s") as kernel:
        async with open_client(tmp_path / "s") as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.read, 1)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert client.num_calls_in_flight == 0
            assert len(kernel.sessions[0].calls) == 1
            release.set()
            await trio.testing.wait_all_tasks_blocked()
            await client.ping()


async def test_call_in_a_cancelled_scope_is_not_sent(tmp_path: Path) -> None:
    """A call that raises Cancelled at once has not happened."""
    async with open_fake_kernel(FakeKernel(say_done), tmp_path / "s") as kernel:
        async with open_client(tmp_path / "s") as client:
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.kill(1)
            assert scope.cancelled_caught
            await client.ping()
        assert [type(call.body) for call in kernel.sessions[0].calls] == [Ping]


async def test_cancelled_spawn_leaves_no_process(tmp_path: Path) -> None:
    """What a spawn created after its caller was cancelled is killed and reaped."""
    release = trio.Event()

    async def hold_spawns(session: FakeSession, body: Request) -> Answer:
        if isinstance(body, Spawn):
            await release.wait()
            return Spawned((11, 12), (0, 1))
        return Done()

    async with open_fake_kernel(FakeKernel(hold_spawns), tmp_path / "s") as kernel:
        async with open_client(tmp_path / "s") as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.spawn, [1, 2])
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            release.set()
            await trio.testing.wait_all_tasks_blocked()
            await client.ping()
        bodies = [call.body for call in kernel.sessions[0].calls]
        assert bodies == [Spawn((1, 2)), Kill(11), Wait(11), Kill(12), Wait(12), Ping()]


async def test_closing_does_not_wait_for_a_silent_kernel(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A client that is closed behind a cancelled detached spawn gives the answer two seconds, no more."""

    async def never(session: FakeSession, body: Request) -> Answer:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    async with open_fake_kernel(FakeKernel(never), tmp_path / "s") as kernel:
        started = trio.current_time()
        for detached in (False, True):
            async with open_client(tmp_path / "s") as client:
                with trio.move_on_after(1):
                    await client.spawn([1, 2], detached=detached)
        assert trio.current_time() - started == pytest.approx(1 + 1 + BURIAL_SECONDS)
        assert len(kernel.sessions) == 2


async def break_with_error(session: FakeSession) -> None:
    """Say why, then close."""
    await session.send(Reply(0, ErrorReply(Errno.ESHUTDOWN, "the kernel stops")))
    await session.stream.aclose()


async def break_silently(session: FakeSession) -> None:
    """Close."""
    await session.stream.aclose()


async def break_inside_a_frame(session: FakeSession) -> None:
    """Close in the middle of a reply."""
    await session.stream.send_all(encode_frame(Reply(1, Done()))[:-2])
    await session.stream.aclose()


async def break_with_a_huge_frame(session: FakeSession) -> None:
    """Announce a frame over the limit."""
    await session.stream.send_all(LENGTH.pack(MAX_FRAME_BYTES + 1))


async def break_with_garbage(session: FakeSession) -> None:
    """Send a frame that is no message."""
    await session.stream.send_all(LENGTH.pack(3) + b"abc")


async def break_with_bad_text(session: FakeSession) -> None:
    """Send an error reply whose message is not UTF-8."""
    frame = encode_frame(Reply(1, ErrorReply(Errno.EIO, "message")))
    await session.stream.send_all(frame.replace(b"message", b"\xff\xff\xff\xff\xff\xff\xff"))


async def break_with_an_unknown_id(session: FakeSession) -> None:
    """Answer a call that nobody made."""
    await session.send(Reply(999, Done()))


@pytest.mark.parametrize(
    ("breaking", "reason"),
    [
        (break_with_error, "ESHUTDOWN: the kernel stops"),
        (break_silently, "closed the connection"),
        (break_inside_a_frame, "inside a frame"),
        (break_with_a_huge_frame, f"the limit is {MAX_FRAME_BYTES}"),
        (break_with_garbage, "cannot be read"),
        (break_with_bad_text, "cannot be read"),
        (break_with_an_unknown_id, "call 999"),
    ],
)
async def test_lost_connection_reaches_every_caller(
    tmp_path: Path, breaking: Callable[[FakeSession], Awaitable[None]], reason: str
) -> None:
    """However the session ends, all waiting calls and all later ones raise ConnectionLost with the reason."""

    async def break_on_stop(session: FakeSession, body: Request) -> Answer:
        if isinstance(body, Stop):
            await breaking(session)
        await trio.sleep_forever()
        raise AssertionError

    losses = 0
    async with open_fake_kernel(FakeKernel(break_on_stop), tmp_path / "s"):
        async with open_client(tmp_path / "s") as client:

            async def lose(call: Callable[[int], Awaitable[object]], pid: int) -> None:
                nonlocal losses
                with pytest.raises(ConnectionLost, match=reason):
                    await call(pid)
                losses += 1

            async def follow(pid: int) -> None:
                with client.open_feed(pid) as feed:
                    await feed.follow(lambda output: True)

            async with trio.open_nursery() as nursery:
                for pid in range(10):
                    nursery.start_soon(lose, client.read, pid)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(lose, follow, 1)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(lose, client.stop, 1)
            await lose(client.kill, 1)
    assert losses == 13


async def test_closing_the_client_wakes_callers_outside_the_block(tmp_path: Path) -> None:
    """A task that outlives the block gets ConnectionLost, not silence."""

    async def never(session: FakeSession, body: Request) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    caught: list[str] = []
    async with open_fake_kernel(FakeKernel(never), tmp_path / "s"), trio.open_nursery() as nursery:
        async with open_client(tmp_path / "s") as client:

            async def read() -> None:
                try:
                    await client.read(1)
                except ConnectionLost as error:
                    caught.append(str(error))

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
    assert caught == ["this client was closed"]


async def test_oversized_call_is_refused_here(tmp_path: Path) -> None:
    """A frame over the limit never reaches the socket: EINVAL, and the session goes on."""
    async with open_fake_kernel(FakeKernel(say_done), tmp_path / "s"):
        async with open_client(tmp_path / "s") as client:
            with pytest.raises(SyscallError, match=str(MAX_FRAME_BYTES)) as caught:
                await client.spawn([1 << 31] * (MAX_FRAME_BYTES // 5 + 1))
            assert caught.value.errno is Errno.EINVAL
            await client.ping()


async def test_a_kernel_that_does_not_read_slows_callers(tmp_path: Path) -> None:
    """Behind a full socket callers wait to send, and can be cancelled there without a trace."""
    reading = trio.Event()

    async def greet_and_pause(session: FakeSession) -> None:
        await session.send(Welcome(ABI_VERSION, "9.9", 1, "tester", True))
        await reading.wait()

    prompt = [1 << 20] * 100_000
    async with open_fake_kernel(FakeKernel(say_done, greeting=greet_and_pause), tmp_path / "s") as kernel:
        async with open_client(tmp_path / "s") as client:

            async def write() -> None:
                await client.write(1, prompt)

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(write)
                await trio.testing.wait_all_tasks_blocked()
                assert 1 < client.num_calls_in_flight < 20
                sent_at_most = client.num_calls_in_flight
                nursery.cancel_scope.cancel()
            reading.set()
            await client.ping()
        assert len(kernel.sessions[0].calls) == sent_at_most + 1


async def test_stream_reads_to_the_end_of_the_turn(tmp_path: Path) -> None:
    """The stream follows offsets, yields the output that ends the turn, and can start the next turn."""
    story = tuple(range(10))

    async def read_by_threes(session: FakeSession, body: Request) -> Answer:
        assert isinstance(body, Read)
        stop = min(body.offset + 3, 10)
        return Output(
            body.offset, story[body.offset : stop], end=ExitStatus("length") if stop == 10 else None
        )

    async with open_fake_kernel(FakeKernel(read_by_threes), tmp_path / "s"):
        async with open_client(tmp_path / "s") as client:
            stream = client.stream(1)
            outputs = [output async for output in stream]
            assert [output.offset for output in outputs] == [0, 3, 6, 9]
            assert sum((output.tokens for output in outputs), ()) == story
            assert outputs[-1].end == ExitStatus("length")
            assert stream.offset == 10
            rest = [output.tokens async for output in client.stream(1, 8)]
            assert rest == [(8, 9)]


async def test_followed_events_continue_after_the_last(tmp_path: Path) -> None:
    """Each batch of events is asked for from one past the last sequence number seen."""
    asked: list[int] = []

    async def two_events(session: FakeSession, body: Request) -> Answer:
        assert isinstance(body, Events)
        assert body.follow
        asked.append(body.since)
        return EventList(tuple(Event(body.since + n, 0.0, "info", "mm", "text") for n in (1, 2)))

    async with open_fake_kernel(FakeKernel(two_events), tmp_path / "s"):
        async with open_client(tmp_path / "s") as client:
            async for events in client.follow_events(5):
                assert len(events) == 2
                if len(asked) == 3:
                    break
    assert asked == [5, 8, 11]


def test_calls_are_numbered_from_one() -> None:
    """Id 0 belongs to the session, so a first call never has it."""
    session = ClientSession()
    assert session.encode_call(Ping()) == (1, encode_frame(Call(1, Ping())))


def test_answers_before_the_end_of_a_session_are_delivered() -> None:
    """In one read with the kernel's farewell: they are returned, and the next call tells why it ended."""
    session = ClientSession()
    session.receive(encode_frame(Welcome(ABI_VERSION, "1", 1, "tester", False)))
    call_id, _ = session.encode_call(Ping())
    farewell = encode_frame(Reply(0, ErrorReply(Errno.EPROTO, "a frame is too large")))
    answers = session.receive(encode_frame(Reply(call_id, Done())) + farewell)
    assert answers == [(call_id, Done())]
    for _ in range(2):
        with pytest.raises(ConnectionLost, match="a frame is too large"):
            session.receive(b"")
