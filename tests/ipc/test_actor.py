"""Actors."""

from __future__ import annotations

import trio
from attrs import define, field

from llmos.ipc.actor import Actor
from llmos.ipc.mailbox import Mailbox, Reply


@define(eq=False)
class Counter(Actor[tuple[int, Reply[int]]]):
    """Adds numbers up and answers with the sum."""

    total: int = field(init=False, default=0)

    async def run(
        self, *, task_status: trio.TaskStatus[Mailbox[tuple[int, Reply[int]]]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started(self.mailbox)
        async for number, reply in self.mailbox:
            self.total += number
            reply.set(self.total)


async def test_an_actor_serves_what_was_sent_before_it_stopped() -> None:
    """Closing the mailbox ends the actor after its last message, and its nursery is free."""
    counter = Counter("counter", Mailbox(4))
    replies: list[Reply[int]] = [Reply() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        mailbox = await nursery.start(counter.run)
        for number, reply in enumerate(replies):
            mailbox.send_nowait((number, reply))
        counter.stop()
    assert [await reply.wait() for reply in replies] == [0, 1, 3]
    statistics = counter.statistics()
    assert (statistics.name, statistics.mailbox.num_sent, statistics.mailbox.is_closed) == (
        "counter",
        3,
        True,
    )
