"""Mailboxes and replies."""

from __future__ import annotations

import math
from collections import deque

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.mailbox import Mailbox, MailboxClosed, Reply

operations = st.lists(
    st.one_of(st.integers(0, 99), st.sampled_from(["receive", "drain", "close"])), max_size=40
)


@given(capacity=st.sampled_from([1, 3, math.inf]), operations=operations)
def test_nowait_operations_agree_with_a_deque(capacity: float, operations: list[int | str]) -> None:
    """Without anyone waiting, a mailbox is a bounded queue that can be closed."""
    mailbox: Mailbox[int] = Mailbox(capacity)
    model: deque[int] = deque()
    is_closed = False
    num_sent = 0
    for operation in operations:
        match operation:
            case "receive" if model:
                assert mailbox.receive_nowait() == model.popleft()
            case "receive":
                with pytest.raises(trio.EndOfChannel if is_closed else trio.WouldBlock):
                    mailbox.receive_nowait()
            case "drain":
                assert mailbox.drain_nowait() == list(model)
                model.clear()
            case "close":
                mailbox.close()
                is_closed = True
            case int() if is_closed:
                with pytest.raises(MailboxClosed):
                    mailbox.send_nowait(operation)
            case int() if len(model) >= capacity:
                with pytest.raises(trio.WouldBlock):
                    mailbox.send_nowait(operation)
            case int():
                mailbox.send_nowait(operation)
                model.append(operation)
                num_sent += 1
        statistics = mailbox.statistics()
        assert len(mailbox) == statistics.num_queued == len(model)
        assert (statistics.num_sent, statistics.is_closed) == (num_sent, is_closed)


@given(
    capacity=st.integers(1, 3),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    num_receivers=st.integers(1, 3),
    cancel_at=st.lists(st.integers(0, 12), max_size=4),
    drain=st.booleans(),
)
def test_every_message_arrives_once_whoever_is_cancelled(
    capacity: int, counts: list[int], num_receivers: int, cancel_at: list[int], drain: bool
) -> None:
    """Senders' messages arrive once and in their order; a cancelled wait neither loses nor doubles one."""
    mailbox: Mailbox[tuple[int, int]] = Mailbox(capacity)
    sent: list[tuple[int, int]] = []
    received: list[tuple[int, int]] = []

    async def sender(number: int, count: int) -> None:
        for serial in range(count):
            while True:  # gives up after a while and tries again
                with trio.move_on_after(1 + number) as scope:
                    await mailbox.send((number, serial))
                if not scope.cancelled_caught:
                    sent.append((number, serial))
                    break

    async def receiver(number: int) -> None:
        while True:
            with trio.move_on_after(1 + number / 3):
                try:
                    received.append(await mailbox.receive())
                    if drain:
                        received.extend(mailbox.drain_nowait())
                except trio.EndOfChannel:
                    return
            await trio.sleep(number / 2)

    async def interrupted_receiver(when: float) -> None:
        with trio.move_on_at(trio.current_time() + when), trio.testing.assert_checkpoints():
            received.append(await mailbox.receive())

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(num_receivers):
                nursery.start_soon(receiver, number)
            for when in cancel_at:
                nursery.start_soon(interrupted_receiver, when / 4)
            async with trio.open_nursery() as senders:
                for number, count in enumerate(counts):
                    senders.start_soon(sender, number, count)
            mailbox.close()

    async def swallow_end() -> None:
        try:
            await main()
        except* trio.EndOfChannel:  # an interrupted receiver that came after the end
            pass

    trio.run(swallow_end, clock=trio.testing.MockClock(autojump_threshold=0))
    received.extend(mailbox.drain_nowait())
    assert sorted(received) == sorted(sent)
    assert len(sent) == sum(counts)
    if num_receivers == 1 and not cancel_at:
        for number, count in enumerate(counts):
            assert [message for message in received if message[0] == number] == [
                (number, i) for i in range(count)
            ]


async def test_send_waits_for_room(autojump_clock: trio.testing.MockClock) -> None:
    """A full mailbox makes senders wait, and they go in the order they came."""
    mailbox: Mailbox[str] = Mailbox(1)
    mailbox.send_nowait("first")
    async with trio.open_nursery() as nursery:
        for message in ("second", "third"):
            nursery.start_soon(mailbox.send, message)
            await trio.testing.wait_all_tasks_blocked()
        assert mailbox.statistics().num_waiting_senders == 2
        assert [await mailbox.receive() for _ in range(3)] == ["first", "second", "third"]


async def test_close_wakes_everyone() -> None:
    """Waiting senders learn that it is closed; receivers take what is left, then the end."""
    mailbox: Mailbox[int] = Mailbox(1)
    ends: list[str] = []

    async def receive() -> None:
        with pytest.raises(trio.EndOfChannel):
            await mailbox.receive()
        ends.append("receiver")

    async def send() -> None:
        with pytest.raises(MailboxClosed):
            await mailbox.send(2)
        ends.append("sender")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.close()
    other: Mailbox[int] = Mailbox(1)
    mailbox = other
    mailbox.send_nowait(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.close()
    assert ends == ["receiver", "sender"]
    assert [message async for message in mailbox] == [1]


async def test_send_and_receive_are_checkpoints() -> None:
    """Both let others run and notice cancellation even when they need not wait."""
    mailbox: Mailbox[int] = Mailbox(2)
    with trio.testing.assert_checkpoints():
        await mailbox.send(1)
    with trio.testing.assert_checkpoints():
        assert await mailbox.receive() == 1
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.send(2)
    assert scope.cancelled_caught
    assert len(mailbox) == 0


@pytest.mark.parametrize("capacity", [0, -1, 1.5])
def test_a_capacity_is_a_credit(capacity: float) -> None:
    """A capacity below one message, or a part of one, is refused."""
    with pytest.raises(ValueError, match="capacity"):
        Mailbox(capacity)


async def test_a_reply_reaches_the_asker() -> None:
    """The asker gets the value, whether it waits before or after the answer."""
    early: Reply[int] = Reply()
    late: Reply[int] = Reply()
    late.set(2)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def ask() -> None:
            assert await early.wait() == 1

        await trio.testing.wait_all_tasks_blocked()
        early.set(1)
    with trio.testing.assert_checkpoints():
        assert await late.wait() == 2


async def test_a_failed_reply_raises_in_the_asker() -> None:
    """The asker sees the very exception that the answer was."""
    reply: Reply[None] = Reply()
    error = LookupError("no such thing")
    reply.fail(error)
    with pytest.raises(LookupError) as caught:
        await reply.wait()
    assert caught.value is error


async def test_a_reply_to_an_asker_that_has_gone_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """Answering after the asker gave up is ordinary; answering twice is a bug."""
    reply: Reply[int] = Reply()
    with trio.move_on_after(1) as scope:
        await reply.wait()
    assert scope.cancelled_caught
    assert not reply.is_done
    reply.set(1)
    assert reply.is_done
    with pytest.raises(RuntimeError, match="once"):
        reply.fail(ValueError())
