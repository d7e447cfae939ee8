"""Mailboxes: how actors hear from each other, and replies: how they answer."""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar, cast

import trio
from attrs import define, field, frozen

T = TypeVar("T")


class MailboxClosed(trio.BrokenResourceError):
    """The mailbox takes no more messages: its owner has stopped or is stopping."""


@frozen
class MailboxStatistics:
    """A mailbox at one moment."""

    num_queued: int
    capacity: float  # messages; math.inf: unbounded
    num_sent: int  # since it was made
    num_waiting_senders: int
    num_waiting_receivers: int
    is_closed: bool


@define(eq=False)
class Mailbox(Generic[T]):
    """A first-in first-out queue of typed messages from many senders to its owner.

    Once closed it refuses new messages, while those already inside can still be received. Tasks
    that wait are woken in the order they came; one that did not have to wait may overtake them.

    Args:
        capacity: the credit it grants, at least 1: how many messages may wait. math.inf is for senders that
            must never wait and are bounded by something else; the place that asks for it says by what.
    """

    capacity: float
    _queue: deque[T] = field(init=False, factory=deque)
    _receivers: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _senders: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _is_closed: bool = field(init=False, default=False)
    _num_sent: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        if self.capacity < 1 or (self.capacity != math.inf and self.capacity != int(self.capacity)):
            raise ValueError(f"a mailbox capacity is a count of at least 1 or math.inf, not {self.capacity}")

    def __len__(self) -> int:
        return len(self._queue)

    def send_nowait(self, message: T) -> None:
        """Put a message in.

        Raises:
            trio.WouldBlock: the mailbox is full.
            MailboxClosed: it is closed.
        """
        if self._is_closed:
            raise MailboxClosed("mailbox is closed")
        if len(self._queue) >= self.capacity:
            raise trio.WouldBlock
        self._queue.append(message)
        self._num_sent += 1
        if self._receivers:
            self._receivers.unpark()

    async def send(self, message: T) -> None:
        """Put a message in, waiting while the mailbox is full. A checkpoint. Raises MailboxClosed.

        Cancelled means not sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        has_parked = False
        while not self._is_closed and len(self._queue) >= self.capacity:
            has_parked = True
            await self._senders.park()
        # A woken task must not stop between here and the append: its wake-up stood for one free place.
        self.send_nowait(message)
        if not has_parked:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def receive_nowait(self) -> T:
        """Take the oldest message.

        Raises:
            trio.WouldBlock: nothing is there.
            trio.EndOfChannel: closed and empty.
        """
        if not self._queue:
            if self._is_closed:
                raise trio.EndOfChannel
            raise trio.WouldBlock
        message = self._queue.popleft()
        if self._senders:
            self._senders.unpark()
        return message

    async def receive(self) -> T:
        """Take the oldest message, waiting for one. A checkpoint; cancelled means nothing was taken.

        Raises:
            trio.EndOfChannel: closed and empty: the normal way for an owner to stop.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        has_parked = False
        while not self._queue and not self._is_closed:
            has_parked = True
            await self._receivers.park()
        message = self.receive_nowait()
        if not has_parked:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    def drain_nowait(self) -> list[T]:
        """Take everything that is there, oldest first: one crossing for a batch. Never raises."""
        messages = list(self._queue)
        self._queue.clear()
        if self._senders:
            self._senders.unpark(count=len(messages))
        return messages

    def close(self) -> None:
        """Refuse new messages from now on and wake everyone who waits. Idempotent."""
        self._is_closed = True
        self._senders.unpark_all()
        self._receivers.unpark_all()

    def __aiter__(self) -> Mailbox[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def statistics(self) -> MailboxStatistics:
        """Count what waits on either side."""
        return MailboxStatistics(
            num_queued=len(self._queue),
            capacity=self.capacity,
            num_sent=self._num_sent,
            num_waiting_senders=len(self._senders),
            num_waiting_receivers=len(self._receivers),
            is_closed=self._is_closed,
        )


@define(eq=False)
class Reply(Generic[T]):
    """A promise of one answer: put it in a message, wait for it, and the owner of the mailbox keeps it.

    The one who answers never blocks and never learns whether the asker is still there: an answer to an
    asker that has gone is dropped with the promise.
    """

    _value: T | None = field(init=False, default=None)
    _error: Exception | None = field(init=False, default=None)
    _is_done: bool = field(init=False, default=False)
    _askers: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)

    @property
    def is_done(self) -> bool:
        """Whether it has been answered."""
        return self._is_done

    def set(self, value: T) -> None:
        """Answer. Raises RuntimeError when it was answered before."""
        self._settle()
        self._value = value

    def fail(self, error: Exception) -> None:
        """Answer with an exception, raised in the asker. Raises RuntimeError when it was answered before."""
        self._settle()
        self._error = error

    def _settle(self) -> None:
        if self._is_done:
            raise RuntimeError("a reply is given once")
        self._is_done = True
        self._askers.unpark_all()

    async def wait(self) -> T:
        """Wait for the answer and return it. A checkpoint. Raises what `fail` was given."""
        if self._is_done:
            await trio.lowlevel.checkpoint()
        else:
            await self._askers.park()
        if self._error is not None:
            raise self._error
        return cast("T", self._value)
